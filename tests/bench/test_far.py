"""Lines to far upstreams are measured side by side, and what is found is put together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import far
from bench.line import Line
from bench.lineup import Settings

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 30.0
LINES = [Line(0.1), Line(0.1, 0.0, 4e6), Line(0.25)]
# In place of what measures one line: waits for the others, so that it only ends if all run at once.
MEASURE = """
import json, sys, time
from pathlib import Path
job = json.loads(sys.argv[-1])
here = Path(job["home"]).parent
(here / f"began-{job['number']}").touch()
end = time.monotonic() + 30
while len(list(here.glob("began-*"))) < 3:
    assert time.monotonic() < end
    time.sleep(0.01)
if job["number"] == 1:
    sys.exit("no such line")
name = "limited" if job["line"]["connection_rate"] else "unlimited"
row = {"what": str(job["number"]), "unit": "s", "rounds": {"mirror 4": [1.0]}, "bars": []}
panel = {"title": name, "groups": {str(job["number"]): {"mirror 4": 1.0}}}
print("a warning")
chart = {"title": "", "unit": "s", "series": [], "panels": [panel]}
print(json.dumps({"title": "", "rows": [row], "absent": {}, "chart": chart}))
"""
HOLD = """
import signal, sys
from pathlib import Path
from bench import far
from bench.lineup import Settings
# A shell that starts the tests in the background has SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
far.own_network = lambda: (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
far.measure(Settings(Path(sys.argv[1]), True))
"""


def test_side_by_side(tmp_path, monkeypatch):
    """All lines are measured at once; the report has them in order, one chart of equal conditions, and what failed."""
    monkeypatch.setattr(far, "LINES", LINES)
    monkeypatch.setattr(far, "AT_ONCE", 3)
    monkeypatch.setattr(far, "own_network", lambda: (sys.executable, "-c", MEASURE))
    report = far.measure(Settings(tmp_path, False))
    assert [row.what for row in report.rows] == ["0", "2"]
    assert report.absent == {str(LINES[1]): "no such line"}
    assert {panel.title: list(panel.groups) for panel in report.chart.panels} == {"unlimited": ["0", "2"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left(tmp_path, number):
    """When the measurement is interrupted, the processes that measure lines end."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        reports = [tmp_path / str(line) / "report" for line in range(len(far.QUICK_LINES))]
        _wait(lambda: all(report.exists() and report.read_text().endswith("\n") for report in reports))
        pids = [report.read_text().strip() for report in reports]
        process.send_signal(number)
        process.wait(LIMIT)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def _wait(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
