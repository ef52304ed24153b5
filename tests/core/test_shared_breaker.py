"""What the nodes of a cluster say together of an upstream that is out of order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.shared_breaker import PROBE_MS, WINDOW_MS, SharedBreaker, read_breakers, write_breakers

BEGIN = 1_000_000
NODES = ("a", "b", "c", "d")


def told(*words, living=3):
    """A breaker after words of nodes: `a` has failed, `+a` has got an answer; each with the seconds after the beginning."""
    breaker = SharedBreaker()
    for word, seconds in words:
        now = BEGIN + round(1000 * seconds)
        node = word.removeprefix("+")
        breaker = breaker.failed(node, now, now, living) if node == word else breaker.answered(node, now)
    return breaker


@pytest.mark.parametrize(
    ("living", "words", "is_open"),
    [
        (3, [("a", 0)], False),
        (3, [("a", 0), ("a", 1), ("a", 2)], False),
        (3, [("a", 0), ("b", 1)], True),
        (3, [("a", 0), ("b", 10)], True),
        (3, [("a", 0), ("b", 10.1)], False),
        (3, [("a", 0), ("a", 9), ("b", 18)], True),
        (1, [("a", 0)], True),
        # Nobody has beaten since Redis lost its data.
        (0, [("a", 0)], True),
        # An answer takes back the node's own word, and outweighs those of two others.
        (3, [("a", 0), ("+a", 1), ("b", 2)], False),
        (3, [("a", 0), ("+c", 1), ("b", 2)], True),
        (3, [("a", 0), ("b", 1), ("+c", 2)], False),
        (3, [("a", 0), ("b", 1), ("+a", 2)], False),
        (3, [("a", 0), ("b", 1), ("+c", 2), ("a", 3), ("b", 4)], False),
        (3, [("a", 0), ("b", 1), ("+c", 2), ("a", 11), ("b", 12.1)], True),
        # An answer that came before the failures says nothing.
        (3, [("a", 0), ("b", 1), ("+c", 0)], True),
        # The one that had an answer fails itself.
        (3, [("a", 0), ("b", 1), ("+c", 2), ("a", 3), ("c", 4)], True),
        (1, [("a", 0), ("+a", 1), ("a", 2)], True),
    ],
)
def test_whose_word_opens(living, words, is_open):
    """Two nodes within ten seconds, or the only one; and no answer that is newer."""
    assert told(*words, living=living).is_open is is_open


def test_turns_to_probe():
    """A second after it has opened one process probes; who has not failed goes first; a failed probe doubles the pause."""
    opened = told(("a", 0), ("b", 0.1))
    assert opened.since == BEGIN
    assert opened.until == BEGIN + 1100
    assert opened.claimed("c 0", BEGIN + 1099) == opened
    assert opened.claimable_at("c", BEGIN, 3) == BEGIN + 1100
    assert [opened.claimable_at(node, BEGIN, 3) for node in "ab"] == [BEGIN + 2100] * 2
    assert [opened.claimable_at(node, BEGIN, 2) for node in "ab"] == [BEGIN + 1100, BEGIN + 2100]
    claimed = opened.claimed("c 0", BEGIN + 1100)
    assert claimed.prober == "c 0"
    assert claimed.claimed("a 0", BEGIN + 1200) == claimed
    assert claimed.probe_failed("a", "a 0", BEGIN + 1200) == claimed
    failed = claimed.probe_failed("c", "c 0", BEGIN + 1500)
    assert (failed.prober, failed.until) == ("", BEGIN + 1500 + 2000)
    pauses = []
    for _ in range(6):
        before = failed.until
        failed = failed.claimed("a 1", before).probe_failed("a", "a 1", before)
        pauses.append(failed.until - before)
    assert pauses == [4000, 8000, 16000, 30000, 30000, 30000]
    assert failed.claimed("b 0", failed.until).probe_answered("b", failed.until).is_open is False


def test_prober_that_has_died():
    """Its turn ends by itself; the same process may begin anew at once."""
    claimed = told(("a", 0), ("b", 0)).claimed("c 0", BEGIN + 1000)
    assert claimed.claimed("a 0", BEGIN + 1000 + PROBE_MS - 1) == claimed
    assert claimed.claimed("c 0", BEGIN + 2000).until == BEGIN + 2000 + PROBE_MS
    taken = claimed.claimed("a 0", BEGIN + 1000 + PROBE_MS)
    assert taken.prober == "a 0"
    # The dead one was only stopped: its late word of failure is nobody's, an answer is.
    assert taken.probe_failed("c", "c 0", BEGIN + 20_000) == taken
    assert not taken.probe_answered("c", BEGIN + 20_000).is_open


def test_another_clock():
    """Redis was replaced by one whose clock is behind: nobody waits for its old times."""
    opened = told(("a", 0), ("b", 0))
    assert opened.claimable_at("c", BEGIN - 3_600_000, 3) == BEGIN - 3_600_000
    assert opened.claimed("a 0", BEGIN - 3_600_000).prober == "a 0"
    assert not opened.probe_answered("a", BEGIN - 3_600_000).is_open
    assert not told(("a", 3600), ("b", 0)).is_open


def test_old_failure_is_no_failure():
    """A node tells late of what is no longer recent: as if it had said nothing."""
    told_first = told(("a", 0))
    assert told_first.failed("b", BEGIN - WINDOW_MS - 1, BEGIN, 3) == told_first


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "answered", "claim", "probe failed", "probe answered"]),
        st.sampled_from(NODES),
        st.integers(0, 12_000),
    ),
    max_size=40,
)


@given(STEPS, st.integers(2, 4))
def test_properties(steps, living):
    """One node alone never opens it; any answer of a probe closes it; one process has the turn; nobody waits for ever."""
    breaker, now = SharedBreaker(), BEGIN
    failed = {}
    for step, node, passed in steps:
        before, now = breaker, now + passed
        match step:
            case "failed":
                breaker, failed[node] = breaker.failed(node, now, now, living), now
            case "answered":
                breaker = breaker.answered(node, now)
                assert not breaker.is_open or now == breaker.since
            case "claim":
                breaker = breaker.claimed(node, now)
            case "probe failed":
                breaker = breaker.probe_failed(node, node, now)
                assert breaker == before or before.prober == node
            case "probe answered":
                breaker = breaker.probe_answered(node, now)
                assert not breaker.is_open
        if breaker.is_open and not before.is_open:
            assert step == "failed"
            assert sum(now - when <= WINDOW_MS for when in failed.values()) >= 2
        if breaker.prober not in ("", before.prober):
            assert step == "claim"
            assert now >= before.until
        assert breaker.until <= now + 30_000 or not breaker.is_open
        assert all(breaker.claimable_at(name, now, living) <= breaker.until + 1000 for name in NODES)
        assert read_breakers(write_breakers({"": breaker}).encode()) == ({"": breaker} if breaker != SharedBreaker() else {})


GOOD = json.loads(write_breakers({"": told(("a", 0), ("b", 1))}))[""]

WRONG = (None, "x" * 301, "line\n", "\ud800", {"\ud800": 1}, -1, 1.5, True, {"a": -1}, [1])


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\xff", b"[]", b"1", b'{"": 1}', b"[" * 100_000, b"NaN",
        *(json.dumps({"": {**GOOD, key: wrong}}).encode() for key in GOOD for wrong in WRONG),
        json.dumps({"": {**GOOD, "since": 1 << 60}}).encode(),
        json.dumps({"": {**GOOD, "failures": {str(number): 1 for number in range(17)}}}).encode(),
        json.dumps({"": {key: value for key, value in GOOD.items() if key != "pause"}}).encode(),
        b'{"": {"failures": {"' + b"n" * 100_000 + b'": 1}}}',
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_nothing(value):
    """Another version, or somebody else, has written it."""
    assert read_breakers(value) == {}


def test_nothing_is_written_for_nothing():
    assert write_breakers({"": SharedBreaker(), "blob": SharedBreaker()}) == ""
    assert read_breakers(None) == {}
