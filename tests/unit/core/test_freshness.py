"""A tag's record is fresh for its time, then due, and may outlive failures of upstream."""

import math

import pytest

from mirror.core.digest import Digest
from mirror.core.freshness import Due, Fresh, TagRecord, Unknown, decide

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
