"""Charts as SVG, without a library: panels of grouped bars on one logarithmic scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10

COLUMNS = 2
PANEL_WIDTH, PANEL_HEIGHT = 470, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 34, 26
LEGEND_HEIGHT = 34
COLOURS = ("#9ecae1", "#6baed6", "#2171b5", "#08306b", "#74c476", "#fdae6b", "#969696")
TEXT = 'font-family="sans-serif" font-size="11" fill="#333333"'


@dataclass
class Panel:
    """Values by group and series.

    Attributes:
        groups: names along the horizontal axis, each with the value of every series that has one.
    """

    title: str
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Chart:
    """Panels that share a scale and a legend."""

    title: str
    unit: str
    series: tuple[str, ...]
    panels: list[Panel] = field(default_factory=list)


def svg(chart: Chart) -> str:
    """The chart as a document."""
    panels = [panel for panel in chart.panels if any(panel.groups.values())]
    values = [value for panel in panels for group in panel.groups.values() for value in group.values() if value > 0]
    scale = _Scale(values or [1.0])
    rows = ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * PANEL_WIDTH, LEGEND_HEIGHT + rows * PANEL_HEIGHT
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">']
    lines += [f"<title>{escape(chart.title)}</title>", f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    lines += _legend(chart.series)
    for number, panel in enumerate(panels):
        left, top = number % COLUMNS * PANEL_WIDTH, LEGEND_HEIGHT + number // COLUMNS * PANEL_HEIGHT
        lines.append(f'<g transform="translate({left} {top})">')
        lines += _panel(panel, chart, scale)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


class _Scale:
    """From values to heights, by their logarithm; the axis begins and ends at powers of ten or their halves."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low, self._high = floor(log10(min(values)) * 2) / 2, ceil(log10(max(values)) * 2) / 2
        if self._low == self._high:
            self._high += 0.5

    def height(self, value: float) -> float:
        """Pixels above the axis."""
        share = (log10(value) - self._low) / (self._high - self._low)
        return (PANEL_HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    def ticks(self) -> Iterator[float]:
        """Values that get a line: 1, 2 and 5 times every power of ten."""
        for power in range(floor(self._low), ceil(self._high) + 1):
            for factor in (1, 2, 5):
                if self._low <= log10(factor * 10.0**power) <= self._high:
                    yield factor * 10.0**power


def _panel(panel: Panel, chart: Chart, scale: _Scale) -> Iterator[str]:
    floor_y, right = PANEL_HEIGHT - BOTTOM, PANEL_WIDTH - RIGHT
    yield f'<text x="{LEFT}" y="{TOP - 14}" {TEXT} font-weight="bold">{escape(panel.title)}</text>'
    for tick in scale.ticks():
        y = floor_y - scale.height(tick)
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 4:.1f}" {TEXT} text-anchor="end">{tick:g} {escape(chart.unit)}</text>'
    group_width = (right - LEFT) / len(panel.groups)
    bar_width = group_width * 0.86 / len(chart.series)
    for number, (name, values) in enumerate(panel.groups.items()):
        start = LEFT + (number + 0.07) * group_width
        for place, series in enumerate(chart.series):
            if series in values:
                height = scale.height(values[series])
                yield (
                    f'<rect x="{start + place * bar_width:.1f}" y="{floor_y - height:.1f}" width="{bar_width - 1:.1f}" '
                    f'height="{height:.1f}" fill="{COLOURS[place]}"><title>{escape(series)}: {values[series]:.3g} '
                    f"{escape(chart.unit)}</title></rect>"
                )
        middle = LEFT + (number + 0.5) * group_width
        yield f'<text x="{middle:.1f}" y="{floor_y + 16}" {TEXT} text-anchor="middle">{escape(name)}</text>'
    yield f'<line x1="{LEFT}" x2="{right}" y1="{floor_y}" y2="{floor_y}" stroke="#333333"/>'


def _legend(series: Sequence[str]) -> Iterator[str]:
    width = (COLUMNS * PANEL_WIDTH - LEFT) / len(series)
    for place, name in enumerate(series):
        x = LEFT + place * width
        yield f'<rect x="{x:.1f}" y="11" width="12" height="12" fill="{COLOURS[place]}"/>'
        yield f'<text x="{x + 17:.1f}" y="21" {TEXT}>{escape(name)}</text>'
