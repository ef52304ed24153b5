"""The short memory of failures."""

from mirror.core.failures import Failures


def test_first_failure_costs_nothing():
    """After one failure the next asker may try at once."""
    failures = Failures()
    failures.note("key", "cause", 0)
    assert failures.lately("key", 0) is None


def test_pauses_grow_to_their_bound():
    """From the second failure in a row on there is a pause, and it doubles up to ten seconds."""
    failures, now, pauses = Failures(), 0.0, []
    failures.note("key", "cause", now)
    for number in range(6):
        failures.note("key", f"cause {number}", now)
        cause, left = failures.lately("key", now)
        assert cause == f"cause {number}"
        pauses.append(left)
        now += left
        assert failures.lately("key", now) is None
    assert pauses == [1, 2, 4, 8, 10, 10]


def test_success_forgets():
    """Once it works the count starts anew."""
    failures = Failures()
    for _ in range(5):
        failures.note("key", "cause", 0)
    failures.forget("key")
    failures.note("key", "cause", 0)
    assert failures.lately("key", 0) is None


def test_old_failures_are_forgotten():
    """Two failures far from each other are not in a row."""
    failures = Failures()
    failures.note("key", "cause", 0)
    failures.note("key", "cause", 11)
    assert failures.lately("key", 11) is None


def test_keys_do_not_know_each_other():
    """What fails under one key is tried under another."""
    failures = Failures()
    for _ in range(3):
        failures.note("one", "cause", 0)
    assert failures.lately("one", 0)
    assert failures.lately("other", 0) is None


def test_bounded():
    """However many keys fail, not all are remembered."""
    failures = Failures()
    for number in range(10_000):
        failures.note(number, "cause", 0)
    assert len(failures) == 4096
