"""Keeps what the mirror has answered, minute by minute, for the charts of the status page."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mirror.core.traffic import Totals, Traffic, growth
from mirror.storage.traffic_file import TrafficFile

_INTERVAL_S = 60.0
_S_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class _Past:
    """What was counted before a minute.

    Attributes:
        last: the counts since the start of this run that are noted last.
    """

    minute: int
    grown: list[tuple[int, Traffic]]
    last: Traffic


class TrafficHistory:
    """The counts of a mirror over time, which outlive its restarts.

    Each process of a mirror writes the counts of all of them, so it does not matter which one is alive. A disk that cannot be
    written leaves a gap.

    Args:
        started: the start of the mirror in nanoseconds since the epoch.
        figures: returns the counts of all processes since the start; see `status.request_figures`.
    """

    def __init__(self, file: TrafficFile, started: int, figures: Callable[[], dict[str, Any]]) -> None:
        self._file = file
        self._started = started
        self._figures = figures
        self._past: _Past | None = None

    async def run(self) -> None:
        """Write the counts every minute, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await asyncio.to_thread(self.record)

    def record(self) -> None:
        """Write the counts of now. Blocks."""
        totals = self._totals(self._figures())
        # The minute in which this run began has the last counts of the run before.
        if totals.minute > totals.began:
            with contextlib.suppress(OSError):
                self._file.write(totals)

    def growth(self, figures: dict[str, Any]) -> list[tuple[int, Traffic]]:
        """Return how much the counts grew, by minute, up to now. Blocks; one thread at a time may call it.

        Args:
            figures: the counts of now.
        """
        now = self._totals(figures)
        if self._past is None or self._past.minute != now.minute:
            self._past = self._read(now)
        return [*self._past.grown, (now.minute, now.traffic.since(self._past.last))]

    def _read(self, now: Totals) -> _Past:
        rows = [row for row in self._file.read() if (row.minute, row.run) != (now.minute, now.run)]
        own = [row for row in rows if row.run == now.run and row.minute < now.minute]
        last = max(own, key=lambda row: row.minute).traffic if own else Traffic()
        return _Past(now.minute, growth(rows, now.minute), last)

    def _totals(self, figures: dict[str, Any]) -> Totals:
        traffic = Traffic(figures["pulls"], figures["hits"], figures["served_bytes"], figures["upstream_bytes"])
        return Totals(int(time.time()) // _S_PER_MINUTE, self._started, traffic)
