"""The charts of the page: columns over time, as geometry that a template draws as SVG."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Final

from mirror.core.traffic import Traffic, intervals


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time that the charts show.

    Attributes:
        name: in the address of the page.
        title: for people.
        width: minutes of a column.
        count: the number of columns.
    """

    name: str
    title: str
    width: int
    count: int


WINDOWS: Final = {
    window.name: window
    for window in (
        Window("1h", "the last hour", 1, 60),
        Window("24h", "the last 24 hours", 15, 96),
        Window("7d", "the last 7 days", 120, 84),
    )
}
DEFAULT_WINDOW: Final = "24h"
HEIGHT: Final = 100
"""Of a chart, in the units of its drawing."""
# A column with something in it can be seen.
_MIN_HEIGHT: Final = 1.5


@dataclass(frozen=True, slots=True)
class Column:
    """A column of both charts.

    Attributes:
        title: the time that it covers, in UTC.
        hits: height of the hit ratio; None without a pull.
        served: height of the bytes to clients.
        fetched: height of the bytes from upstreams.
    """

    position: int
    title: str
    traffic: Traffic
    hits: float | None
    served: float
    fetched: float


@dataclass(frozen=True, slots=True)
class Charts:
    """What the charts of a window show.

    Attributes:
        total: over the whole window.
        top: bytes at the upper edge of the chart of bytes.
    """

    window: Window
    columns: tuple[Column, ...]
    total: Traffic
    top: int


def charts(window: Window, grown: Sequence[tuple[int, Traffic]], minute: int) -> Charts:
    """Return the charts of a window that ends with a minute.

    Args:
        grown: what was counted, by minute; see `core.traffic.growth`.
    """
    sums = intervals(grown, minute, window.width, window.count)
    top = _round_up(max(max(traffic.served, traffic.fetched) for traffic in sums))
    first = (minute // window.width - window.count + 1) * window.width
    columns = [
        Column(
            position=position,
            title=_span(first + position * window.width, window.width),
            traffic=traffic,
            hits=None if traffic.hit_ratio is None else _height(traffic.hit_ratio),
            served=_height(traffic.served / top),
            fetched=_height(traffic.fetched / top),
        )
        for position, traffic in enumerate(sums)
    ]
    return Charts(window, tuple(columns), reduce(add, sums), top)


def _height(share: float) -> float:
    return round(max(_MIN_HEIGHT, min(1.0, share) * HEIGHT), 1) if share > 0 else 0.0


def _round_up(count: int) -> int:
    """Return a size that is easy to read and not smaller; 1 KiB at least."""
    for power in range(10, 70, 10):
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500):
            if count <= step << power:
                return step << power
    return count


def _span(minute: int, width: int) -> str:
    begin, end = (time.gmtime(at * 60) for at in (minute, minute + width))
    return f"{time.strftime('%d %b %H:%M', begin)} to {time.strftime('%H:%M', end)} UTC"
