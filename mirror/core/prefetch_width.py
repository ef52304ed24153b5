"""How many blobs of an image are fetched ahead at once, by what they bring. Times are seconds of one clock."""

from __future__ import annotations

from typing import Final

WIDTHS: Final = (3, 6, 12)
"""The first is as many as Docker and containerd fetch at once by themselves. Where upstream limits each connection, twice as
many save half of the wait."""
_SAMPLE_S: Final = 0.2
# A rate that has grown by less is that of connections at full speed.
_STEADY: Final = 1.1
# Twice as many have to bring so much more.
_MIN_GAIN: Final = 1.25
# If no byte has come after this time, the responses take long to begin: more of them cost nothing.
_SILENCE_S: Final = 0.6
# A decision is made anew after this time.
_TTL_S: Final = 600.0


class PrefetchWidth:
    """As many as clients fetch by themselves are measured first, then twice as many as long as these bring enough more.

    Over a full line more connections bring no more bytes, and delay the first layers, which clients unpack while the others
    arrive.
    """

    def __init__(self) -> None:
        self._step = 0
        self._decided: float | None = None
        # Of the width before this one; 0 if that has brought nothing.
        self._narrower_rate = 0.0
        # Of what is measured now: the highest rate, and the time and the bytes at the last look.
        self._rate = 0.0
        self._sample: tuple[float, int] | None = None

    def count(self, now: float) -> int:
        """How many there should be."""
        if self._decided is not None and now >= self._decided + _TTL_S:
            self._step, self._decided = 0, None
            self._begin()
        return WIDTHS[self._step]

    def note(self, now: float, received: int, running: int) -> None:
        """Record the progress, and decide.

        Args:
            received: all bytes that the registry has sent.
            running: how many blobs are being fetched.
        """
        if self._decided is not None:
            return
        if self._sample is None or running < WIDTHS[self._step]:
            self._begin(now, received)
            return
        began, before = self._sample
        elapsed = now - began
        if elapsed < (_SILENCE_S if received == before else _SAMPLE_S):
            return
        rate = (received - before) / elapsed
        self._sample = (now, received)
        if rate > _STEADY * self._rate:
            self._rate = rate
        else:
            self._conclude(now, max(rate, self._rate))

    def ended(self) -> None:
        """Record that no blob is being fetched: a trial that is not decided begins anew, with what has brought more so far."""
        if self._decided is None:
            if not self._narrower_rate:
                self._step = 0
            self._begin()

    def _begin(self, now: float = 0.0, received: int | None = None) -> None:
        """Measure from now on."""
        self._sample = None if received is None else (now, received)
        self._rate = 0.0

    def _conclude(self, now: float, rate: float) -> None:
        if self._step and not rate:
            # Nothing can be concluded from silence.
            pass
        elif self._step and rate < _MIN_GAIN * self._narrower_rate:
            self._step, self._decided = self._step - 1, now
        elif self._step + 1 == len(WIDTHS):
            self._decided = now
        else:
            self._step, self._narrower_rate = self._step + 1, rate
        self._begin()
