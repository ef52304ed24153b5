"""Decides over how many connections a blob is fetched, and which piece each of them fetches. Times are seconds of one clock."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

CHUNK: Final = 1 << 20
"""Bytes of a chunk. One connection at a time writes into a chunk, so pieces begin and end at chunks."""
END: Final = 1 << 62
"""Stands for the end of a blob; larger than any blob."""
_MIN_PIECE_BYTES: Final = CHUNK
_MAX_PIECE_BYTES: Final = 32 * CHUNK
# The bytes that a connection may have received but not written, or claimed.
IN_HAND_BYTES: Final = 2 * CHUNK
# A piece takes long enough for the round trip before it, and the ramp of its connection, to cost little.
_PIECE_S: Final = 0.5
_PIECE_ROUND_TRIPS: Final = 8
# While the first speed is measured, a far connection still accelerates (RFC 5681, Slow Start): it is taken to reach this.
_UNSURE_BYTES_PER_S: Final = 2 * CHUNK
# The time over which the speed is measured.
_SAMPLE_S: Final = 0.3
# The share of an earlier speed that still counts.
_FORGETTING: Final = 0.8
# A trial ends after this time even if some connections have received nothing.
_MAX_TRIAL_S: Final = 5.0
# A single connection that is faster than this fills a Gigabit link: further ones cost CPU time and add no speed.
_FAST_BYTES_PER_S: Final = 100 * CHUNK
# Further connections are opened only if the missing bytes take a single connection longer than this.
_WORTH_S: Final = 0.5
_WORTH_ROUND_TRIPS: Final = 4
# Several connections stay only if they are faster than one by this factor.
_MIN_GAIN: Final = 1.25


@dataclass(slots=True, eq=False)
class Lane:
    """The piece of one connection.

    Attributes:
        position: position of its next byte.
        stop: the end of the piece. The plan may move it towards `position`; the connection then ends there.
        end: the end of what upstream sends.
        round_trip: seconds from its request to the begin of the response; None until then.
    """

    position: int
    stop: int = END
    end: int = END
    round_trip: float | None = None
    _start: int = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.position

    @property
    def flows(self) -> bool:
        """Whether bytes have arrived on it."""
        return self.position > self._start


def piece_length(rate: float, round_trip: float) -> int:
    """Bytes of a piece for a connection of `rate` bytes per second whose response takes `round_trip` seconds to begin."""
    wanted = rate * max(_PIECE_ROUND_TRIPS * round_trip, _PIECE_S)
    return round(min(max(wanted, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES) / CHUNK) * CHUNK


class Pieces:
    """Hands out the missing bytes of one blob to connections, from the first to the last, so that they arrive nearly in sequence.

    Args:
        hole: returns the first run of missing bytes that ends after a position, None if there is none.
    """

    def __init__(self, hole: Callable[[int], tuple[int, int] | None]) -> None:
        self._hole = hole
        self._lanes: list[Lane] = []

    @property
    def lanes(self) -> Sequence[Lane]:
        """The pieces that are being fetched."""
        return self._lanes

    def add(self, lane: Lane) -> None:
        """Record a piece that was not handed out here."""
        self._lanes.append(lane)

    def remove(self, lane: Lane) -> None:
        """Record that a connection has ended; bytes that it has not fetched are handed out again."""
        self._lanes.remove(lane)

    def rejoin(self) -> None:
        """Let each connection fetch what upstream sends on it, up to the chunk of another one: there will be no further ones."""
        for lane in self._lanes:
            lane.stop = lane.end

    def take(self, connections: int, speed: Speed) -> Lane | None:
        """Hand out a piece; None if enough connections are at work, or if their pieces cover all missing bytes.

        Args:
            connections: their number, more than one: a single one needs no plan.
        """
        if len(self._lanes) >= connections:
            return None
        length = speed.piece_length
        for lane in self._lanes:
            # The first connection requests the whole blob.
            if lane.stop - lane.position > 2 * length:
                lane.stop = _chunk_end(lane.position + max(length, IN_HAND_BYTES))
        worth = max(2 * speed.round_trip * speed.rate, _MIN_PIECE_BYTES)
        taken = self._first_free(length) or self._second_half(worth)
        if taken is not None:
            self._lanes.append(taken)
        return taken

    def _first_free(self, length: int) -> Lane | None:
        lanes = sorted(self._lanes, key=lambda lane: lane.position)
        hole = self._hole(0)
        while hole is not None:
            start, stop = hole
            for lane in lanes:
                if lane.position // CHUNK * CHUNK <= start < lane.stop:
                    start = lane.stop
            if start < stop:
                ahead = min((lane.position for lane in lanes if start < lane.position), default=stop)
                return Lane(start, min(_chunk_end(start + length), ahead, stop))
            hole = self._hole(max(start, stop))
        return None

    def _second_half(self, worth: float) -> Lane | None:
        """Split the longest piece: near the end of a blob a connection takes over a part of it instead of idling."""
        longest = max(self._lanes, key=lambda lane: lane.stop - lane.position, default=None)
        if longest is None or longest.stop == END:
            return None
        middle = _chunk_end(max((longest.position + longest.stop) // 2, longest.position + IN_HAND_BYTES))
        stop = longest.stop
        if stop - middle < worth:
            return None
        longest.stop = middle
        return Lane(middle, stop)


def _chunk_end(position: int) -> int:
    return -(-position // CHUNK) * CHUNK


class Verdict(enum.Enum):
    """Whether several connections to an upstream are faster than one."""

    UNKNOWN = enum.auto()
    SINGLE = enum.auto()
    PARALLEL = enum.auto()


@dataclass(frozen=True, slots=True)
class Speed:
    """What is known of the connections to an upstream, for this blob and the next one.

    Attributes:
        rate: bytes per second of one connection.
        round_trip: seconds that a response takes to begin.
    """

    verdict: Verdict = Verdict.UNKNOWN
    rate: float = 0.0
    round_trip: float = 0.0

    @property
    def piece_length(self) -> int:
        """Bytes of a piece for one of the connections."""
        unsure = _UNSURE_BYTES_PER_S if self.verdict is Verdict.UNKNOWN else 0.0
        return piece_length(max(self.rate, unsure), self.round_trip)


class Width:
    """Decides how many connections fetch one blob.

    The speed of one connection is measured first, then that of all together. All stay if they are fast enough compared with one.

    Attributes:
        speed: the measurements so far.

    Args:
        most: limit of the connections for one blob.
        speed: the measurements of an earlier blob.
    """

    def __init__(self, most: int, speed: Speed = Speed()) -> None:
        self.speed = speed if most > 1 else Speed(Verdict.SINGLE)
        self._most = most
        self._trial: float | None = None
        self._solo = 0.0
        self._sample: tuple[float, int] | None = None

    @property
    def connections(self) -> int:
        """The number of connections to use now."""
        return self._most if self._trial is not None or self.speed.verdict is Verdict.PARALLEL else 1

    def refuse(self) -> None:
        """Continue with one connection: upstream refuses ranges, or several connections."""
        self._conclude(Verdict.SINGLE)

    def note(self, now: float, received: int, left: int, lanes: Sequence[Lane]) -> None:
        """Record the progress, and decide once enough of it is measured.

        Args:
            received: bytes of the blob that have arrived.
            left: bytes that have not.
            lanes: the connections at work.
        """
        flowing = [lane for lane in lanes if lane.flows]
        is_starting = self._trial is not None and len(flowing) < self._most and now - self._trial < _MAX_TRIAL_S
        if self._sample is None or is_starting:
            self._sample = (now, received)
        elapsed = now - self._sample[0]
        if elapsed < _SAMPLE_S or not flowing:
            return
        rate = (received - self._sample[1]) / elapsed
        self._sample = (now, received)
        trips = [lane.round_trip for lane in flowing if lane.round_trip is not None]
        # Connections between two pieces are slower than they could be.
        each = max(rate / len(flowing), _FORGETTING * self.speed.rate)
        self.speed = Speed(self.speed.verdict, each, min(trips, default=self.speed.round_trip))
        if self.speed.verdict is Verdict.UNKNOWN:
            self._decide(now, rate, left)

    def _decide(self, now: float, rate: float, left: int) -> None:
        if self._trial is not None:
            self._conclude(Verdict.PARALLEL if rate >= _MIN_GAIN * self._solo else Verdict.SINGLE)
        elif rate >= _FAST_BYTES_PER_S:
            self._conclude(Verdict.SINGLE)
        elif left > rate * max(_WORTH_S, _WORTH_ROUND_TRIPS * self.speed.round_trip):
            self._trial, self._solo, self._sample = now, rate, None

    def _conclude(self, verdict: Verdict) -> None:
        self._trial, self.speed = None, Speed(verdict, self.speed.rate, self.speed.round_trip)
