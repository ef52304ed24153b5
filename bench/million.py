"""A store of a million blobs: how soon it serves, and what requests notice of the clearing up and of an eviction."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench import servers
from bench.clients import get
from bench.content import MANIFEST_TYPE, Content
from bench.filled import REGISTRY, TAGS, Filled, fill
from bench.lineup import Settings
from bench.paced import Asked, Pace
from bench.process import Child, NotTakenError, ResidentPeak
from bench.report import MIRROR, NGINX, Bar, Report, Row
from bench.servers import ROOT, Mirror

BLOBS, QUICK_BLOBS = 1_000_000, 100_000
IMAGES_PER_BLOB = 0.01
RATE = 300.0
ASKED_PATHS = 1000
# Of the other server, which only tells what requests take on this machine just now.
IDLE_FILES, IDLE_FILE_BYTES = 100, 1000
QUIET_SECONDS, QUICK_QUIET_SECONDS = 30.0, 10.0
# A mirror evicts down to 0.90 of its limit: a limit of what is held makes a tenth of it go.
EVICTED_SHARE = 0.1
# The store counts whole blocks, its log bytes.
ENOUGH = 0.9
START_SECONDS = 60.0
PHASE_SECONDS = 300.0
POLL_SECONDS = 0.01
PURGED = "bench/image-1:v1"
MEGA = 1e6
MILLI = 1e3


def measure(settings: Settings) -> Report:
    """One long life of a mirror on that store, under a steady load of small requests; then two more starts."""
    count = QUICK_BLOBS if settings.quick else BLOBS
    title = f"A store of {count:,} blobs, {RATE:.0f} small requests a second"
    report = Report(title, columns=(MIRROR, NGINX))
    report.notes.append(
        f"{NGINX} serves {IDLE_FILES} small files at the same time and has nothing else to do: the machine's own share."
    )
    root = settings.home / "store"
    try:
        began = time.monotonic()
        filled = fill(root, count, round(count * IMAGES_PER_BLOB))
        report.notes.append(f"It has {round(count * IMAGES_PER_BLOB) * TAGS:,} tags.")
        report.notes.append(f"Filling it took {time.monotonic() - began:.0f} s.")
        starting = Row("first answer after start", "s", bars=[Bar(1.0, False, "<= 1 s")])
        report.rows.append(starting)
        with _mirror(settings, root, filled.bytes, filled) as (mirror, seconds):
            starting.add(MIRROR, seconds)
            _live(settings, mirror, filled, report)
        for _ in range(settings.rounds(3) - 1):
            with _mirror(settings, root, filled.bytes, filled) as (_, seconds):
                starting.add(MIRROR, seconds)
    finally:
        # Much faster than a walk in Python, which is what would clear it otherwise.
        subprocess.run(["rm", "-rf", str(root)], check=False)
    return report


@contextmanager
def _mirror(settings: Settings, root: Path, limit: int, filled: Filled) -> Iterator[tuple[Mirror, float]]:
    """A mirror on the store, and the seconds from its start to the first held blob that it serves."""
    config = {
        "storage": {"path": str(root), "max_size": limit, "min_free": 0},
        "registries": {"docker.io": {"upstreams": ["http://127.0.0.1:9"]}},
        "log": {"level": "info", "format": "json"},
    }
    began = time.monotonic()
    with servers.started_mirror(settings.home, config) as mirror:
        while not _answers(mirror, filled.small_blobs[0]):
            mirror.child.check_alive()
            if time.monotonic() - began > START_SECONDS:
                raise NotTakenError(f"no blob was served within {START_SECONDS:.0f} s: {mirror.child.last_line()}")
            time.sleep(POLL_SECONDS)
        yield mirror, time.monotonic() - began


def _answers(mirror: Mirror, path: str) -> bool:
    with contextlib.suppress(OSError, HTTPException):
        return get(mirror.port, path)[0] == 200
    return False


def _live(settings: Settings, mirror: Mirror, filled: Filled, report: Report) -> None:
    """Watch a mirror count, evict and clear up, and then do nothing."""
    at_start = mirror.child.resident_bytes()
    phases: dict[str, tuple[float, float]] = {}
    paths = filled.manifests[:ASKED_PATHS] + filled.small_blobs[:ASKED_PATHS]
    with ExitStack() as stack:
        idle = stack.enter_context(_idle(settings))
        peak = stack.enter_context(ResidentPeak(mirror.child))
        client = stack.enter_context(_client(Pace(mirror.port, paths, RATE, MANIFEST_TYPE)))
        phases["counting"] = _wait_event(mirror.child, "store_counted")
        phases["evicting"] = _wait_event(mirror.child, "evicted", filled.bytes * EVICTED_SHARE * ENOUGH)
        phases["clearing up"] = _wait_event(mirror.child, "leftovers_cleared")
        quiet = time.time()
        time.sleep(QUICK_QUIET_SECONDS if settings.quick else QUIET_SECONDS)
        phases["quiet"] = quiet, time.time()
        after = mirror.child.resident_bytes()
        phases["listing images"] = _timed(mirror, "/api/v1/images?n=100")
        phases["metrics"] = _timed(mirror, "/metrics")
        phases["purging one tag"] = _timed(mirror, f"/api/v1/images/{REGISTRY}/{PURGED}", "DELETE")
        asked = {MIRROR: client(), NGINX: idle()}
    evicted = sum(entry["blobs"] for entry in _log(mirror.child) if entry["event"] == "evicted")
    report.notes.append(f"{evicted:,} blobs were evicted.")
    _note_phases(report, phases, asked, evicted)
    for what, value in (("at start", at_start), ("at most", peak.bytes), ("after evicting", after)):
        report.rows.append(Row(f"resident {what}", "MB", {MIRROR: [value / MEGA]}))
    report.rows[-2].bars.append(Bar(150, False, "< 150 MB"))
    late = max(each.late for each in asked.values())
    report.notes.append(f"The clients themselves were late by at most {late * MILLI:.0f} ms; {len(asked[MIRROR].took)} requests.")


def _note_phases(report: Report, phases: dict[str, tuple[float, float]], asked: dict[str, Asked], evicted: int) -> None:
    for phase in ("quiet", "counting", "evicting", "clearing up", "listing images"):
        since, until = phases[phase]
        report.rows.append(Row(f"{phase}: takes", "s", {MIRROR: [until - since]}))
        most, slowest = Row(f"{phase}: 99.9 % within", "ms"), Row(f"{phase}: slowest request", "ms")
        for name, each in asked.items():
            took = [took for sent, took in zip(each.sent, each.took, strict=True) if sent < until and sent + took > since]
            if len(took) >= 2:
                most.add(name, quantiles(took, n=1000, method="inclusive")[-1] * MILLI)
                slowest.add(name, max(took) * MILLI)
        if phase == "evicting":
            slowest.bars.append(Bar(20, False, "<= 20 ms"))
        report.rows += [row for row in (most, slowest) if row.rounds]
    seconds = phases["evicting"][1] - phases["evicting"][0]
    report.rows.append(Row("evicted", "blobs/s", {MIRROR: [evicted / max(seconds, 1e-3)]}))
    for phase in ("metrics", "purging one tag"):
        report.rows.append(Row(f"{phase}: takes", "s", {MIRROR: [phases[phase][1] - phases[phase][0]]}))
    report.rows[-1].bars.append(Bar(2.0, False, "<= 2 s"))


@contextmanager
def _idle(settings: Settings) -> "Iterator[_Client]":
    """Requests at the same pace to a server that does nothing else."""
    content = Content(settings.home / "content")
    paths = content.blobs(IDLE_FILES, IDLE_FILE_BYTES)
    with (
        servers.nginx_files(settings.home, content.root, settings.workers) as nginx,
        _client(Pace(nginx.port, paths, RATE)) as client,
    ):
        yield client


@contextmanager
def _client(pace: Pace) -> "Iterator[_Client]":
    client = _Client(pace, ROOT)
    try:
        yield client
    finally:
        client.end()


class _Client:
    """The paced requests of a process of its own; called, it ends and tells what came of them."""

    def __init__(self, pace: Pace, cwd: Path) -> None:
        argv = [sys.executable, "-m", "bench.paced"]
        self._popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(asdict(pace)) + "\n")
        self._popen.stdin.flush()

    def __call__(self) -> Asked:
        asked = Asked(**json.loads(self._popen.communicate(timeout=60)[0]))
        if asked.error:
            raise NotTakenError(asked.error)
        return asked

    def end(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(10)


def _timed(mirror: Mirror, path: str, method: str = "GET") -> tuple[float, float]:
    began = time.time()
    status, beginning = get(mirror.admin, path, {"Content-Type": "application/json"}, method=method)
    if status != 200:
        raise NotTakenError(f"{method} {path} answered {status}: {beginning[:200]!r}")
    return began, time.time()


def _wait_event(child: Child, event: str, size: float = 0) -> tuple[float, float]:
    """When what the log tells of began and ended, in seconds since the epoch; it may take several times for so many bytes."""
    deadline = time.monotonic() + PHASE_SECONDS
    while True:
        child.check_alive()
        entries = [entry for entry in _log(child) if entry["event"] == event]
        if entries and sum(entry.get("bytes", 0) for entry in entries) >= size:
            times = [datetime.fromisoformat(entry["timestamp"]).timestamp() for entry in entries]
            return times[0] - entries[0]["seconds"], times[-1]
        if time.monotonic() > deadline:
            raise NotTakenError(f"{event} did not come within {PHASE_SECONDS:.0f} s: {child.last_line()}")
        time.sleep(0.2)


def _log(child: Child) -> list[dict[str, Any]]:
    entries = []
    for line in child.log.read_text().splitlines():
        # The last line may be half written.
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries
