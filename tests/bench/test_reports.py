"""What the bench writes: verdicts as Markdown, and a chart as SVG."""

from xml.etree import ElementTree as ET

from bench.plot import Chart, Panel, svg
from bench.report import MIRROR, NGINX, Bar, Report, Row, at_least
from bench.summary import as_markdown

SVG = "{http://www.w3.org/2000/svg}"


def test_every_bar_has_a_verdict():
    """Met, missed, and not taken because the other server is absent."""
    report = Report("Title")
    report.rows = [
        Row("met", "s", {MIRROR: [1.0, 3.0, 2.0]}, [Bar(2.0, False, "<= 2")]),
        Row("missed", "MB/s", {MIRROR: [1.0], NGINX: [4.0]}, [at_least(0.5, NGINX)]),
        Row("not taken", "MB/s", {MIRROR: [1.0]}, [at_least(0.5, NGINX)]),
        Row("without a bar", "s", {MIRROR: [1.0]}),
    ]
    lines = as_markdown({"name": report}, "command").splitlines()
    assert lines[2:8] == [
        "|  | figure | bar | verdict |",
        "| --- | --- | --- | --- |",
        "| name: met | 2.000 | <= 2 | PASS |",
        "| name: missed | 0.250 | >= 0.5 x nginx | short |",
        "| name: not taken | - | >= 0.5 x nginx | not taken |",
        "",
    ]
    assert "| missed | MB/s | 1.000 | 4.000 |  |" in lines


def test_bars_are_as_high_as_their_values():
    """Ten times as much is always the same height more, and what was not measured leaves a gap."""
    panel = Panel("p & q", {"near": {"a": 1.0, "b": 10.0}, "far": {"b": 100.0}})
    root = ET.fromstring(svg(Chart("title", "s", ("a", "b"), [panel, Panel("empty")])))
    bars = {
        bar.find(f"{SVG}title").text: float(bar.get("height"))
        for bar in root.iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    }
    assert set(bars) == {"a: 1 s", "b: 10 s", "b: 100 s"}
    heights = sorted(bars.values())
    assert abs((heights[2] - heights[1]) - (heights[1] - heights[0])) < 0.2
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "p & q" in texts
    assert "empty" not in texts
