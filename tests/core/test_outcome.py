"""The outcome words are the ones clients and dashboards know."""

from mirror.core.outcome import Outcome


def test_words():
    """Each outcome is written as its own name, and there are these six."""
    assert [str(outcome) for outcome in Outcome] == [
        "HIT",
        "MISS",
        "JOINED",
        "REVALIDATED",
        "STALE",
        "BYPASS",
    ]
