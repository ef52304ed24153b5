"""When a tag follows what upstream names, and for which reason it does not."""

import pytest

from mirror.core.digest import Digest
from mirror.core.tag_moves import FOLLOW, HoldRule, Keep, Reason, Refuse, UpstreamMove, decide_move, until
from mirror.core.units import format_utc

NEW = Digest.of(b"new")
NOW = 1_800_000_000.0
COOLDOWN = HoldRule(cooldown=100.0)
REFUSING = HoldRule(cooldown=100.0, refuses_new=True)
FROZEN = HoldRule(freeze=True)


def move(age=0.0, *, is_new=False, is_released=False):
    return UpstreamMove(NEW, is_new, NOW - age, is_released)


@pytest.mark.parametrize(
    ("rule", "seen", "expected"),
    [
        (COOLDOWN, move(0), Keep(NEW, Reason.COOLDOWN, NOW + 100)),
        (COOLDOWN, move(99), Keep(NEW, Reason.COOLDOWN, NOW + 1)),
        (COOLDOWN, move(100), FOLLOW),
        (COOLDOWN, move(0, is_released=True), FOLLOW),
        (COOLDOWN, move(0, is_new=True), FOLLOW),
        (REFUSING, move(0), Keep(NEW, Reason.COOLDOWN, NOW + 100)),
        (REFUSING, move(1, is_new=True), Refuse(NEW, NOW + 99)),
        (REFUSING, move(100, is_new=True), FOLLOW),
        (REFUSING, move(0, is_new=True, is_released=True), FOLLOW),
        (FROZEN, move(1e9), Keep(NEW, Reason.FREEZE)),
        (FROZEN, move(0, is_new=True), FOLLOW),
        (FROZEN, move(0, is_released=True), FOLLOW),
        (HoldRule(100.0, freeze=True), move(1e9), Keep(NEW, Reason.FREEZE)),
        (HoldRule(100.0, refuses_new=True, freeze=True), move(0, is_new=True), Refuse(NEW, NOW + 100)),
        (HoldRule(), move(0), FOLLOW),
    ],
)
def test_decision(rule, seen, expected):
    assert decide_move(rule, seen, NOW) == expected


def test_until_is_said():
    assert until(Keep(NEW, Reason.FREEZE)) == "until it is released"
    assert until(Refuse(NEW, NOW + 0.5)) == "until 2027-01-15T08:00:01Z" == f"until {format_utc(NOW + 1)}"
