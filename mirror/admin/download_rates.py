"""How fast downloads bring bytes from upstream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from mirror.download.ingest import Ingest

# The share of the last interval in the rate: a rate that jumps each second cannot be read.
_WEIGHT: Final = 0.4
_MIN_INTERVAL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Sample:
    """What had arrived at a time.

    Attributes:
        time: seconds, of a monotonic clock.
        rate: bytes a second; None before the second sample.
    """

    time: float
    received: int
    rate: float | None


class DownloadRates:
    """The rates of the downloads of this process. One thread at a time may call `sample`; any may call `rate`."""

    def __init__(self) -> None:
        self._samples: WeakKeyDictionary[Ingest, _Sample] = WeakKeyDictionary()

    def sample(self, downloads: Iterable[Ingest], now: float) -> None:
        """Note what has arrived; call it every second or so."""
        for download in downloads:
            before, received = self._samples.get(download), download.received
            if before is None:
                self._samples[download] = _Sample(now, received, None)
            elif now - before.time >= _MIN_INTERVAL_S:
                # A second try begins from zero.
                rate = max(0, received - before.received) / (now - before.time)
                mean = rate if before.rate is None else before.rate + _WEIGHT * (rate - before.rate)
                self._samples[download] = _Sample(now, received, mean)

    def rate(self, download: Ingest) -> int | None:
        """Return the bytes a second that arrive; None for a download that has just begun."""
        sample = self._samples.get(download)
        return None if sample is None or sample.rate is None else round(sample.rate)
