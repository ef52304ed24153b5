"""A tag's record is fresh for its time, then due, and may outlive failures of upstream."""

import math
from dataclasses import replace

import pytest

from mirror.core.digest import Digest
from mirror.core.freshness import Due, Fresh, TagRecord, Unknown, after_check, decide

NOW = 1_000_000.0


def record(checked):
    return TagRecord(Digest.of(b"m"), "application/json", 1, checked=checked, changed=0, pulled=0)


@pytest.mark.parametrize(
    ("age", "ttl", "kind"),
    [
        (0, 60, Fresh),
        (59.9, 60, Fresh),
        (60, 60, Due),
        (61, 60, Due),
        (0, 0, Due),
        (-0.1, 60, Due),
        (-1e9, 60, Due),
        (1e5, math.inf, Fresh),
    ],
)
def test_decide(age, ttl, kind):
    """A record is fresh until its time to live has passed, and due from then on or if the clock went back."""
    known = record(NOW - age)
    assert decide(known, NOW, ttl) == kind(known)


def test_unknown():
    """Without a record nothing is known."""
    assert decide(None, NOW, 60) == Unknown()


def test_due_before_its_time():
    """A record that is to be checked is due until a check that began after that has confirmed it."""
    known = replace(record(NOW - 10), due=NOW - 5)
    assert decide(known, NOW, 60) == Due(known)
    early = after_check(known, record(NOW - 6), NOW)
    assert decide(early, NOW, 60) == Due(early)
    later = after_check(known, record(NOW - 4), NOW)
    assert decide(later, NOW, 60) == Fresh(later)


@pytest.mark.parametrize(("asked", "kept"), [(NOW - 1, False), (NOW, True), (NOW + 1, True)])
def test_checks_are_ordered_by_their_beginning(asked, kept):
    """A check that began before the one that is noted changes nothing."""
    found = record(asked)
    assert after_check(record(NOW), found, NOW + 2) == (found if kept else None)


def test_clock_set_back_does_not_stop_checks():
    """A note from the future, made before the clock was set back, gives way, and so does a wish to have it checked."""
    known = replace(record(NOW + 1e6), due=NOW + 2e6)
    assert after_check(known, record(NOW), NOW + 1) == record(NOW)


def test_check_keeps_what_stays_true():
    """The digest's beginning and the last pull stay, unless the check tells of another digest or of a later pull."""
    known = replace(record(NOW), changed=5.0, pulled=7.0)
    kept = after_check(known, replace(record(NOW + 1), changed=NOW, pulled=0.0), NOW + 1)
    assert (kept.checked, kept.changed, kept.pulled) == (NOW + 1, 5.0, 7.0)
    other = replace(record(NOW + 1), digest=Digest.of(b"other"), changed=NOW, pulled=NOW)
    assert after_check(known, other, NOW + 1) == other
