"""Disk, certificates and clock are judged with both numbers in the text."""

import pytest

from mirror.core.checks import Check, check_account, check_certificate, check_clock, check_disk, check_reload

GIB = 1 << 30
DAY = 86400


@pytest.mark.parametrize(
    ("total", "free", "max_size", "min_free", "ok", "parts"),
    [
        (100, 50, 50, 2, True, ("50GiB of 100GiB",)),
        (100, 50, 0, 2, True, ()),
        (1, 1, 50, 2, False, ("1GiB", "2GiB", "nothing can be stored")),
        (40, 30, 50, 2, False, ("40GiB", "50GiB", "max_size")),
        (100, 1, 50, 2, False, ("1GiB", "2GiB", "min_free")),
    ],
)
def test_disk(total, free, max_size, min_free, ok, parts):
    check = check_disk(total * GIB, free * GIB, max_size * GIB, min_free * GIB)
    assert (check.name, check.ok) == ("storage", ok)
    assert all(part in check.text for part in parts)


@pytest.mark.parametrize(
    ("left", "ok", "text"),
    [
        (100 * DAY, True, "expires in 100 days"),
        (13 * DAY, False, "expires in 13 days"),
        (3600, False, "expires in 1h"),
        (-3 * DAY, False, "expired 3 days ago: clients refuse it"),
    ],
)
def test_certificate(left, ok, text):
    check = check_certificate("tls.certificate", 1e9 + left, 1e9)
    assert (check.ok, check.text) == (ok, text)


def test_certificate_that_cannot_be_read():
    assert check_certificate("x", None, 1e9).ok


@pytest.mark.parametrize(
    ("skew", "ok", "text"),
    [
        ({"hub": 0.4}, True, "agrees with hub to 0 s"),
        ({"hub": -59}, True, "agrees with hub to 59 s"),
        ({"hub": 61}, False, "1m1s ahead of the one of hub"),
        ({"hub": -7200}, False, "2h behind the one of hub"),
        ({"wrong": 7200, "right": -3}, True, "agrees with right to 3 s"),
        ({}, True, "no upstream has told its time yet"),
    ],
)
def test_clock(skew, ok, text):
    check = check_clock(skew)
    assert (check.ok, text in check.text) == (ok, True)


@pytest.mark.parametrize(
    ("problem", "accepted", "text"),
    [(None, True, "someone is accepted"), (None, False, "someone has not been refused"), ("refused", True, "refused")],
)
def test_account(problem, accepted, text):
    assert check_account("docker.io", "someone", problem, accepted=accepted) == Check("account.docker.io", problem is None, text)


@pytest.mark.parametrize("problem", [None, "downlods: did you mean downloads?"])
def test_reload(problem):
    check = check_reload(problem)
    assert (check.ok, (problem or "loaded last") in check.text) == (problem is None, True)
