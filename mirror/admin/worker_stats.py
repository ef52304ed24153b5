"""Statistics of the processes of one mirror: each publishes its own in a file, so that any of them can report all.

Each process rewrites its sheet every second and for each request for metrics. What a process has counted stays counted after its
end: its sheet is folded into the sheet of all that have ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, Sample
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import Across, Metrics

# What operators have to see to: of each kind, what it is about, and what is the matter, in words.
Problems: TypeAlias = dict[str, dict[str, str]]
# The sum of the sheets of processes that have ended; the names of those among them whose files may still exist.
_ENDED, _CONTAINS = "ended.json", "contains"
# The name of a sample and its labels.
_Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class WorkerStats:
    """What all processes of a mirror have counted.

    Args:
        directory: where the sheets hang; None if there is only this process.
    """

    def __init__(self, metrics: Metrics, directory: Path | None) -> None:
        self._metrics = metrics
        self._directory = directory
        self._own = None if directory is None else directory / f"{os.getpid()}-{time.monotonic_ns()}.json"
        # Threads of one process may write at the same time.
        self._writing = threading.Lock()

    def publish(self, downloads: list[dict[str, Any]], problems: Problems) -> None:
        """Write the own sheet. Blocks for a moment."""
        if self._own is None:
            return
        with self._writing, contextlib.suppress(OSError):
            metrics = generate_latest(self._metrics.registry).decode()
            _write(self._own, {"metrics": metrics, "heard": self._metrics.heard, "downloads": downloads, "problems": problems})

    def metrics(self) -> bytes:
        """The metrics of all processes as one, in Prometheus's text format; put up the own ones first. Blocks for a moment.

        The own ones are taken from the sheet, too: what was told of this process must still be there when it has died.
        """
        counted = [
            _Counted(list(text_string_to_metric_families(sheet["metrics"])), sheet["heard"], alive, path == self._own)
            for path, sheet, alive in _sheets(self._directory)
        ]
        if not counted:
            return generate_latest(self._metrics.registry)
        together = CollectorRegistry()
        together.register(_Together(counted, self._metrics.across))
        return generate_latest(together)

    def downloads(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The downloads of all processes that live. Blocks for a moment."""
        return own + [entry for sheet in self._others() for entry in sheet["downloads"]]

    def problems(self, own: Problems) -> Problems:
        """The problems of all processes that live; of those that several have, the own words. Blocks for a moment."""
        found: Problems = {kind: {} for kind in own}
        for problems in (*(sheet["problems"] for sheet in self._others()), own):
            for kind, entries in problems.items():
                found.setdefault(kind, {}).update(entries)
        return found

    def _others(self) -> Iterable[dict[str, Any]]:
        return (sheet for path, sheet, alive in _sheets(self._directory) if alive and path != self._own)


def fold_ended(directory: Path) -> None:
    """Add the sheets of processes that have ended to one sheet. Not for two processes at a time.

    Another process may be reading the previous sum, so the sheets that went into this one are removed by the next call.
    """
    ended = {path.name: sheet for path, sheet, alive in _sheets(directory) if not alive}
    added = sorted(ended.keys() - {_ENDED})
    if not added:
        return
    total = CollectorRegistry()
    families = [list(text_string_to_metric_families(sheet["metrics"])) for sheet in ended.values()]
    total.register(_Together([_Counted(one, {}, alive=False, own=False) for one in families], {}))
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
    """Return each sheet with its path, and whether its process is alive."""
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
class _Counted:
    """What one process has counted.

    Attributes:
        heard: when it has heard of pull limits, by registry.
        alive: it still runs; the gauges of one that has died are no more.
        own: it is this process.
    """

    metrics: list[Metric]
    heard: Mapping[str, float]
    alive: bool
    own: bool

    def rank(self, across: Across, sample: Sample) -> float:
        """Of several processes' values the one of the highest rank counts."""
        match across:
            case Across.ASKED:
                return float(self.own)
            case Across.LATEST:
                return self.heard.get(sample.labels.get("registry", ""), 0.0)
            case Across.LEAST:
                return -sample.value
            case _:
                return sample.value


class _Together:
    """A collector of what several processes have counted."""

    def __init__(self, counted: list[_Counted], across: Mapping[str, Across]) -> None:
        self._counted = counted
        self._across = across

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        samples: dict[str, dict[_Key, list[tuple[_Counted, Sample]]]] = {}
        for one in self._counted:
            for metric in one.metrics:
                if metric.type == "gauge" and not one.alive:
                    continue
                families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                found = samples.setdefault(metric.name, {})
                for sample in metric.samples:
                    found.setdefault((sample.name, tuple(sample.labels.items())), []).append((one, sample))
        for name, family in families.items():
            # In the text format when counting began is a gauge, too, of which nobody else knows.
            across = self._across.get(name, Across.LEAST) if family.type == "gauge" else Across.SUM
            for (sample_name, labels), found_samples in samples[name].items():
                family.add_sample(sample_name, dict(labels), _value(across, found_samples))
        return families.values()


def _value(across: Across, found: list[tuple[_Counted, Sample]]) -> float:
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
