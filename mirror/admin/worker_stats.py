"""Statistics of the processes of one mirror: each publishes its own in a file, so that any of them can report all.

Each process rewrites its file every second and for each request for metrics. The counts of a process that has ended remain: its
file is folded into one file of all that have ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, Sample
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from mirror.metrics import Across, Metrics

# What operators may have to mend, and the states of upstreams: by kind and subject, a description.
Problems: TypeAlias = dict[str, dict[str, str]]
# The sum of all processes that have ended, and its key with the names of the folded files that may still exist.
_ENDED, _CONTAINS = "ended.json", "contains"
# A file that holds the problem after a reload that the supervisor has refused.
_REFUSED = "reload-refused"
Encode: TypeAlias = Callable[[Collector], bytes]
"""Renders metrics; see `prometheus_client.exposition.choose_encoder`."""
# The name of a sample and its labels.
_Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class WorkerStats:
    """The statistics of all processes of a mirror. Each method blocks on files for a moment.

    Args:
        directory: holds the files; None if there is only this process.
    """

    def __init__(self, metrics: Metrics, directory: Path | None) -> None:
        self._metrics = metrics
        self._directory = directory
        self._own = None if directory is None else directory / f"{os.getpid()}-{time.monotonic_ns()}.json"
        # Threads of one process may publish at the same time.
        self._writing = threading.Lock()

    def publish(self, downloads: list[dict[str, Any]], problems: Problems, troubles: Sequence[dict[str, Any]] = ()) -> None:
        """Write this process's file: its running downloads, its problems, and its last failed pulls."""
        if self._own is None:
            return
        with self._writing, contextlib.suppress(OSError):
            metrics = generate_latest(self._metrics.registry).decode()
            sheet = {"metrics": metrics, "heard": self._metrics.heard, "downloads": downloads, "problems": problems}
            _write(self._own, {**sheet, "troubles": list(troubles)})

    @property
    def reload_problem(self) -> str | None:
        """Why the supervisor has refused the last reload; None if it has not. See `note_reload`."""
        if self._directory is not None:
            with contextlib.suppress(OSError):
                return (self._directory / _REFUSED).read_text()
        return None

    def metrics(self, encode: Encode = generate_latest) -> bytes:
        """Return the metrics of all processes as one, by default in Prometheus's text format; call `publish` first.

        This process's own are read from its file, too: what was reported once must remain when the process has died.
        """
        counted = [
            _ProcessMetrics(list(text_string_to_metric_families(sheet["metrics"])), sheet["heard"], alive, path == self._own)
            for path, sheet, alive in _sheets(self._directory)
        ]
        if not counted:
            return encode(self._metrics.registry)
        combined = CollectorRegistry()
        combined.register(_CombinedCollector(counted, self._metrics.across))
        return encode(combined)

    def downloads(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the downloads of all running processes, given this one's."""
        return own + [entry for sheet in self._others() for entry in sheet["downloads"]]

    def troubles(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the last failed pulls of all running processes, given this one's, the latest first."""
        found = own + [entry for sheet in self._others() for entry in sheet.get("troubles", ())]
        return sorted(found, key=lambda entry: float(entry["time"]), reverse=True)

    def problems(self, own: Problems) -> Problems:
        """Return the problems of all running processes, given this one's, which replace equal ones of others."""
        found: Problems = {kind: {} for kind in own}
        for problems in (*(sheet["problems"] for sheet in self._others()), own):
            for kind, entries in problems.items():
                found.setdefault(kind, {}).update(entries)
        return found

    def upstream_states(self, own: Problems) -> dict[str, str]:
        """Return the state of each upstream by the process that has asked it last, given this one's problems."""
        others = [(sheet["problems"], sheet["heard"]) for sheet in self._others()]
        times: dict[str, float] = {}
        states: dict[str, str] = {}
        for problems, heard in (*others, (own, self._metrics.heard)):
            for upstream, state in problems.get("upstreams", {}).items():
                if heard.get(upstream, 0.0) >= times.get(upstream, 0.0):
                    times[upstream], states[upstream] = heard.get(upstream, 0.0), state
        return states

    def _others(self) -> Iterable[dict[str, Any]]:
        return (sheet for path, sheet, alive in _sheets(self._directory) if alive and path != self._own)


def note_reload(directory: Path, problem: str | None) -> None:
    """Record for all processes why the supervisor has refused the configuration of a reload; None if it has not."""
    path = directory / _REFUSED
    with contextlib.suppress(OSError):
        if problem is None:
            path.unlink(missing_ok=True)
        else:
            path.with_suffix(".new").write_text(problem)
            path.with_suffix(".new").replace(path)


def fold_ended(directory: Path) -> None:
    """Add the files of processes that have ended to one file. Only one process may call it.

    Another process may be reading the previous sum, so the next call removes the files that this one adds.
    """
    ended = {path.name: sheet for path, sheet, alive in _sheets(directory) if not alive}
    added = sorted(ended.keys() - {_ENDED})
    if not added:
        return
    total = CollectorRegistry()
    families = [list(text_string_to_metric_families(sheet["metrics"])) for sheet in ended.values()]
    total.register(_CombinedCollector([_ProcessMetrics(one, {}, alive=False, own=False) for one in families], {}))
    metrics = generate_latest(total).decode()
    with contextlib.suppress(OSError):
        _write(directory / _ENDED, {"metrics": metrics, "heard": {}, "downloads": [], "problems": {}, _CONTAINS: added})
        for name in ended.get(_ENDED, {}).get(_CONTAINS, ()):
            (directory / name).unlink(missing_ok=True)


def _write(path: Path, sheet: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(sheet))
    new.replace(path)


def _sheets(directory: Path | None) -> list[tuple[Path, dict[str, Any], bool]]:
    """Return the path and content of each file, and whether its process is alive."""
    if directory is None:
        return []
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append((directory / _ENDED, json.loads((directory / _ENDED).read_text()), False))
    contained = [name for _, sheet, _ in found for name in sheet[_CONTAINS]]
    for path in sorted(directory.glob("*-*.json")):
        if path.name not in contained:
            with contextlib.suppress(OSError, ValueError):
                found.append((path, json.loads(path.read_text()), _is_alive(int(path.stem.partition("-")[0]))))
    return found


@dataclass(frozen=True)
class _ProcessMetrics:
    """The metrics of one process.

    Attributes:
        heard: see `Metrics`.
        alive: it is running; the gauges of a dead process do not count.
        own: it is this process.
    """

    metrics: list[Metric]
    heard: Mapping[str, float]
    alive: bool
    own: bool

    def rank(self, across: Across, sample: Sample) -> float:
        """Return the rank of a gauge's value: the one of the highest rank is reported."""
        match across:
            case Across.ASKED:
                return float(self.own)
            case Across.LATEST:
                subject = (sample.labels[name] for name in ("registry", "upstream") if name in sample.labels)
                return self.heard.get(" ".join(subject), 0.0)
            case Across.LEAST:
                return -sample.value
            case _:
                return sample.value


class _CombinedCollector:
    """Collects the metrics of several processes as one."""

    def __init__(self, counted: list[_ProcessMetrics], across: Mapping[str, Across]) -> None:
        self._counted = counted
        self._across = across

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        samples: dict[str, dict[_Key, list[tuple[_ProcessMetrics, Sample]]]] = {}
        for one in self._counted:
            for metric in one.metrics:
                if metric.type == "gauge" and not one.alive:
                    continue
                families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                found = samples.setdefault(metric.name, {})
                for sample in metric.samples:
                    found.setdefault((sample.name, tuple(sample.labels.items())), []).append((one, sample))
        for name, family in families.items():
            across = self._across.get(name, Across.LEAST) if family.type == "gauge" else Across.SUM
            for (sample_name, labels), found_samples in samples[name].items():
                family.add_sample(sample_name, dict(labels), _value(across, found_samples))
        return families.values()


def _value(across: Across, found: list[tuple[_ProcessMetrics, Sample]]) -> float:
    if across is Across.SUM:
        return _sum([sample.value for _, sample in found])
    return max(found, key=lambda entry: entry[0].rank(across, entry[1]))[1].value


def _sum(values: list[float]) -> float:
    """Add up, rounding up: whatever the order and the parts of a sum, the total of a counter never decreases."""
    total = math.fsum(values)
    return total if math.fsum([*values, -total]) <= 0 else math.nextafter(total, math.inf)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
