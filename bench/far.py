"""Blobs that nobody holds from an upstream that is far away, limits each connection, or lies behind a line that loses packets.

The line limits what is measured, not the processor, so several lines are measured side by side.
"""

import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.far_line import KEY, MEGA, PARALLEL_FROM, Job, blob_bytes, columns, connection_speed
from bench.line import RATE, Line, means, own_network
from bench.lineup import Settings
from bench.plot import Chart, Panel
from bench.process import Child, NotTakenError
from bench.report import MIRROR, Bar, Report, Row
from bench.servers import ROOT

ROUND_TRIPS = (0.005, 0.1, 0.25)
CONNECTION_RATES = (0.0, 4e6)
LOSSES = (0.0, 0.001)
LINES = [Line(trip, loss, rate) for loss in LOSSES for rate in CONNECTION_RATES for trip in ROUND_TRIPS]
QUICK_LINES = [Line(0.1, 0.0, 4e6), Line(0.1, 0.001)]
# The network is the bound, not the processor, up to so many for each core.
AT_ONCE = 3 * (os.cpu_count() or 1)
POLL_SECONDS = 0.1


def measure(settings: Settings) -> Report:
    """Each line is measured by a process of its own."""
    lines = QUICK_LINES if settings.quick else LINES
    jobs = [Job(str(settings.home / str(number)), settings.quick, line, number) for number, line in enumerate(lines)]
    names = columns(jobs[0])
    report = Report("Far upstream: time to the first and the last byte", columns=names)
    report.chart = Chart("Time to the last byte of a cold blob, by round trip to the upstream", "s", names)
    report.notes.append(f"Delay and loss are made by {means()}; all connections together get {RATE / MEGA:.0f} MB/s.")
    report.notes.append(f"{MIRROR} N: {KEY}: N, parallel_from: {PARALLEL_FROM}. Sizes differ: compare within a row.")
    began, spent = time.monotonic(), _cpu_seconds()
    outcomes = dict(_side_by_side(jobs))
    busy = (_cpu_seconds() - spent) / (time.monotonic() - began) / (os.cpu_count() or 1)
    report.notes.append(f"{min(AT_ONCE, len(jobs))} lines at a time; the processor was busy for {busy:.0%} of the time.")
    for job in jobs:
        _add(report, job, outcomes[job])
    return report


def _side_by_side(jobs: Iterable[Job]) -> Iterator[tuple[Job, Report | NotTakenError]]:
    """Measure all, the longest first."""
    waiting = deque(sorted(jobs, key=lambda job: blob_bytes(job.line) / connection_speed(job.line), reverse=True))
    running: dict[Job, Child] = {}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                job = waiting.popleft()
                running[job] = stack.enter_context(_start(job))
            for job in [job for job, child in running.items() if child.has_ended()]:
                yield job, _outcome(running.pop(job))
            time.sleep(POLL_SECONDS)


def _start(job: Job) -> Child:
    home = Path(job.home)
    home.mkdir()
    argv = [*own_network(), sys.executable, "-m", "bench.far_line", json.dumps(asdict(job))]
    return Child(argv, home / "report", cwd=ROOT, env={"TMPDIR": job.home})


def _outcome(child: Child) -> Report | NotTakenError:
    try:
        return _report(json.loads(child.last_line()))
    except ValueError:
        return NotTakenError(child.last_line())


def _report(found: dict[str, Any]) -> Report:
    """A Report from the JSON of its fields."""
    rows = [Row(**{**row, "bars": [Bar(**bar) for bar in row["bars"]]}) for row in found["rows"]]
    chart = Chart(**{**found["chart"], "panels": [Panel(**panel) for panel in found["chart"]["panels"]]})
    return Report(found["title"], rows, found["absent"], chart=chart)


def _add(report: Report, job: Job, outcome: Report | NotTakenError) -> None:
    """Add what was found over one line; panels of equal conditions differ by the round trip only."""
    if isinstance(outcome, NotTakenError):
        report.absent[str(job.line)] = str(outcome)
        return
    report.rows += outcome.rows
    report.absent |= outcome.absent
    assert report.chart
    assert outcome.chart
    panels = {panel.title: panel for panel in report.chart.panels}
    for panel in outcome.chart.panels:
        if panel.title in panels:
            panels[panel.title].groups |= panel.groups
        else:
            report.chart.panels.append(panel)


def _cpu_seconds() -> float:
    """User and system time of processes that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
