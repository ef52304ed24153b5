"""Decides where connections to a node begin that is itself still receiving the blob: wherever bytes arrive there.

A node that receives over several connections has several ranges whose ends grow. One connection at each end keeps this node
closely behind everywhere: if the other one dies, little is lost of what it had.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

from mirror.core.pieces import CHUNK, IN_HAND_BYTES, Lane

Ranges = Sequence[tuple[int, int]]
"""The start and end of what has arrived of a blob, in order of position; there are missing bytes between two of them."""
Hole = Callable[[int], tuple[int, int] | None]
"""Returns the first run of missing bytes that ends after a position, None if there is none."""

MAX_RANGES: Final = 64
"""More are not named: no node has so many connections for one blob."""
_TEXT = re.compile(r"[0-9]{1,15}-[0-9]{1,15}(?:,[0-9]{1,15}-[0-9]{1,15}){0,63}", re.ASCII)
_STARTS = re.compile(r"[0-9]{1,15}(?:,[0-9]{1,15}){0,63}", re.ASCII)


def arrived(hole: Hole, size: int) -> Ranges:
    """The first ranges that have arrived of a blob of `size` bytes."""
    found: list[tuple[int, int]] = []
    position = 0
    while position < size and len(found) < MAX_RANGES:
        start, stop = hole(position) or (size, size)
        if start > position:
            found.append((position, start))
        position = stop
    return found


def rendered(ranges: Ranges) -> str:
    """The text of ranges, `0-1048576,4194304-4259840`; their ends are not included."""
    return ",".join(f"{start}-{stop}" for start, stop in ranges)


def parsed(text: str) -> Ranges | None:
    """The ranges of such a text; None if it is none."""
    if not _TEXT.fullmatch(text):
        return None
    bounds = [int(bound) for part in text.split(",") for bound in part.split("-")]
    if any(first >= second for first, second in itertools.pairwise(bounds)):
        return None
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def rendered_starts(starts: Collection[int]) -> str:
    """The text of positions at which ranges begin, `0,4194304`."""
    return ",".join(map(str, starts))


def parsed_starts(text: str) -> frozenset[int]:
    """The positions of such a text; none if it is none."""
    return frozenset(map(int, text.split(","))) if _STARTS.fullmatch(text) else frozenset()


def is_news(ranges: Ranges, known: Collection[int], size: int) -> bool:
    """Whether a range begins at none of the known positions, or nothing of a blob of `size` bytes is missing."""
    return any(start not in known for start, _ in ranges) or list(ranges) == [(0, size)]


def next_lane(theirs: Ranges, hole: Hole, lanes: Sequence[Lane]) -> Lane | None:
    """The piece in the first of the ranges that no connection follows; None if there is none.

    A piece that covers its beginning is cut there. Each ends where the next range begins.

    Args:
        theirs: what the node has that sends the blob.
        hole: of what this node has.
        lanes: the pieces that are being fetched.
    """
    # Pieces begin at chunks.
    wholes = [(-(-start // CHUNK) * CHUNK, stop) for start, stop in theirs]
    for number, (start, stop) in enumerate(wholes):
        position = start
        while (missing := hole(position)) is not None and (begin := max(missing[0], start)) < stop:
            if not any(_follows(lane, begin, hole) for lane in lanes):
                following = [after for after, _ in wholes[number + 1 :] if after - begin >= IN_HAND_BYTES][:1]
                return _placed(begin, [missing[1], *following], lanes)
            position = missing[1]
    return None


def _placed(begin: int, ends: list[int], lanes: Sequence[Lane]) -> Lane:
    ends += [lane.position for lane in lanes if lane.position > begin]
    for lane in lanes:
        if lane.position < begin < lane.stop:
            lane.stop = begin // CHUNK * CHUNK
    return Lane(begin, min(ends))


def is_behind(theirs: Ranges, hole: Hole, count: int) -> bool:
    """Whether the node has so many bytes in a row from the first one on that this node lacks."""
    missing = hole(0)
    return missing is not None and any(start <= missing[0] and missing[0] + count <= stop for start, stop in theirs)


def _follows(lane: Lane, begin: int, hole: Hole) -> bool:
    """Whether a connection is at work at the begin of a hole, or so close in front of it that it cannot be cut there."""
    if not lane.position <= begin < lane.stop:
        return False
    # What has arrived is known before the connection's position is.
    return begin - lane.position < IN_HAND_BYTES or (missing := hole(lane.position)) is None or missing[0] >= begin
