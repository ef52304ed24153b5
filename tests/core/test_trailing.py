"""Where connections to a node begin that is still receiving the blob itself."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.core.pieces import CHUNK, END, Lane
from mirror.core.trailing import (
    MAX_RANGES,
    arrived,
    is_behind,
    is_news,
    next_lane,
    parsed,
    parsed_starts,
    rendered,
    rendered_starts,
)

SIZE = 50 * CHUNK


def holes_of(ranges, size=SIZE):
    """The function that finds the holes between what has arrived."""
    bounds = [0, *(bound for span in ranges for bound in span), size]
    holes = [(start, stop) for start, stop in zip(bounds[::2], bounds[1::2], strict=True) if start < stop]
    return lambda after: next((hole for hole in holes if hole[1] > after), None)


def in_chunks(*bounds):
    """Ranges by the numbers of chunks."""
    return [(round(start * CHUNK), round(stop * CHUNK)) for start, stop in bounds]


# What a node has, what this one has, the pieces it fetches, and the piece that it fetches next, all in chunks.
CASES = {
    "one range, which the first connection follows": ([(0, 10)], [(0, 9)], [(9, 50)], None),
    "another range": ([(0, 10), (20, 21)], [(0, 9)], [(9, 50)], (20, 50)),
    "a piece ends where the next range begins": ([(0, 10), (20, 21), (30, 31)], [(0, 9)], [(9, 50)], (20, 30)),
    "the first range that nobody follows": ([(0, 10), (20, 22), (30, 31)], [(0, 9), (20, 21)], [(9, 20), (21, 30)], (30, 50)),
    "all are followed": ([(0, 10), (20, 22)], [(0, 9), (20, 21)], [(9, 20), (21, 50)], None),
    "the rest of a range whose connection has ended": ([(0, 10), (20, 25)], [(0, 9), (20, 22.5)], [(9, 20)], (22.5, 50)),
    "nothing is missing of a range that nobody follows": ([(0, 10), (20, 22)], [(0, 9), (20, 22)], [(9, 20)], None),
    "up to what has arrived": ([(0, 10), (20, 22)], [(0, 9), (30, 31)], [(9, 20)], (20, 30)),
    "a connection waits in front of a range": ([(0, 10), (12, 14)], [(0, 10.5)], [(10.5, 50)], None),
    "a range that begins in the middle of a chunk": ([(0, 10), (19.5, 22)], [(0, 9)], [(9, 50)], (20, 50)),
    "the middle of a range": ([(0, 40)], [(0, 9), (20, 30)], [(9, 20)], (30, 50)),
    "a connection has written more than its position says": ([(0, 10)], [(0, 4.5)], [(1, 50)], None),
    "a connection at another hole": ([(0, 10), (20, 21)], [(0, 4)], [(4, 50)], (20, 50)),
    "this node has more": ([(0, 5)], [(0, 9)], [(9, 50)], None),
    "everything": ([(0, 50)], [(0, 50)], [], None),
}


@pytest.mark.parametrize(("theirs", "ours", "lanes", "wanted"), CASES.values(), ids=CASES)
def test_piece(theirs, ours, lanes, wanted):
    """What the node has that nobody fetches yet comes first."""
    pieces = [Lane(*bounds) for bounds in in_chunks(*lanes)]
    found = next_lane(in_chunks(*theirs), holes_of(in_chunks(*ours)), pieces)
    assert (found and [(found.position, found.stop)]) == (wanted and in_chunks(wanted))
    assert all(lane.stop <= found.position or lane.position >= found.stop for lane in pieces if found)


def test_first_request_is_cut():
    """The request for the whole blob ends where another connection begins."""
    first = Lane(3 * CHUNK, END)
    assert next_lane(in_chunks((0, 5), (20, 21)), holes_of(in_chunks((0, 3))), [first]) is not None
    assert first.stop == 20 * CHUNK


def ranges(size=50):
    """Ranges of whole chunks, some of which end in the middle of one."""
    bounds = st.lists(st.integers(0, size), max_size=12, unique=True).map(sorted)
    return bounds.map(lambda found: list(zip(found[::2], found[1::2], strict=False))).map(
        lambda found: in_chunks(*((start, stop - 0.25 if number % 2 else stop) for number, (start, stop) in enumerate(found)))
    )


@settings(max_examples=300)
@given(theirs=ranges(), ours=ranges())
def test_all_that_the_node_has_is_followed(theirs, ours):
    """Each hole of this node in what the other one has gets a connection; no two fetch the same byte, and none what is here."""
    lanes = []
    hole = holes_of(ours)
    while (lane := next_lane(theirs, hole, lanes)) is not None:
        assert not any(start <= lane.position < stop for start, stop in ours)
        assert lane.position < lane.stop
        lanes.append(lane)
        assert len(lanes) < 30
    lanes.sort(key=lambda lane: lane.position)
    assert all(one.stop <= other.position for one, other in itertools.pairwise(lanes))
    for start, stop in theirs:
        found = hole(start)
        if found is not None and max(found[0], start) < stop:
            assert any(lane.position <= max(found[0], start) < lane.stop for lane in lanes)


@given(ours=ranges())
def test_text(ours):
    """Ranges are read as they were written."""
    merged = arrived(holes_of(ours), SIZE)
    assert parsed(rendered(merged)) == (merged or None)
    assert holes_of(merged)(0) == holes_of(ours)(0)


def test_ranges_are_bounded():
    """A map with a thousand holes makes a short header."""
    many = in_chunks(*((number, number + 1) for number in range(0, 1000, 2)))
    assert len(arrived(holes_of(many, 1000 * CHUNK), 1000 * CHUNK)) == MAX_RANGES


@pytest.mark.parametrize(
    "text", ["", "-", "0-", "5-5", "6-5", "0-5,5-9", "0-5,3-9", "0-5,", "a-b", "0-5;6-7", "٠-٥", "0-1" + "0" * 15, "0-5\n"]
)
def test_garbage(text):
    """It says nothing."""
    assert parsed(text) is None


def test_starts():
    """They are read as they were written; garbage says that none is known."""
    assert parsed_starts(rendered_starts([0, 5 * CHUNK])) == {0, 5 * CHUNK}
    assert rendered_starts(()) == ""
    assert {parsed_starts(text) for text in ("", "-1", "0,", "x", "٠", "1" * 16, ",".join(["1"] * 65), "0\n")} == {frozenset()}


@pytest.mark.parametrize(
    ("ranges", "known", "news"),
    [
        ([(0, 5)], [], True),
        ([(0, 5)], [0], False),
        ([(0, 9), (20, 22)], [0], True),
        ([(0, 5), (10, 11), (20, 29)], [0, 20], True),
        ([(0, 30)], [0, 10, 20], False),
        ([(0, 50)], [0], True),
        ([], [], False),
    ],
    ids=["the first", "a longer one", "another one", "another one between", "some have become one", "everything", "nothing"],
)
def test_news(ranges, known, news):
    """Only a range that is not followed yet is worth an answer, and the end."""
    assert is_news(in_chunks(*ranges), [start * CHUNK for start in known], SIZE) is news


@pytest.mark.parametrize(("ours", "count", "behind"), [(3, 7, True), (3, 8, False), (10, 1, False), (50, 1, False)])
def test_far_behind(ours, count, behind):
    """Only what the node has in a row counts."""
    theirs = in_chunks((0, 10), (12, 40))
    assert is_behind(theirs, holes_of(in_chunks((0, ours))), count * CHUNK) is behind
