"""The board: where the processes of one mirror put up what each has counted, so that any of them can answer for all.

Each process rewrites its own sheet every second and whenever it is asked. The sheet of a process that has died stays: what it
counted has happened.
"""

from __future__ import annotations

import contextlib
import json
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
        new = self._own.with_suffix(".new")
        with self._writing, contextlib.suppress(OSError):
            metrics = generate_latest(self._metrics.registry).decode()
            sheet = {"metrics": metrics, "heard": self._metrics.heard, "downloads": downloads, "problems": problems}
            new.write_text(json.dumps(sheet))
            new.replace(self._own)

    def metrics(self) -> bytes:
        """The metrics of all processes as one, in Prometheus's text format; put up the own ones first. Blocks for a moment.

        The own ones are taken from the sheet, too: what was told of this process must still be there when it has died.
        """
        counted = [
            _Counted(list(text_string_to_metric_families(sheet["metrics"])), sheet["heard"], alive, path == self._own)
            for path, sheet, alive in self._sheets()
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
        return (sheet for path, sheet, alive in self._sheets() if alive and path != self._own)

    def _sheets(self) -> list[tuple[Path, dict[str, Any], bool]]:
        found = []
        for path in sorted(self._directory.glob("*.json")) if self._directory is not None else ():
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
        return sum(sample.value for _, sample in found)
    return max(found, key=lambda entry: entry[0].rank(across, entry[1]))[1].value


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
