"""What the nodes of a cluster have done about an order, as one state: any node tells the same."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror.sync.job import SyncJob
from mirror.sync.plan import NOT_HELD

if TYPE_CHECKING:
    from mirror.cluster.orders import OrderRecord, Report

# Reports stay small: a thousand nodes may write one each.
_MAX_PROBLEMS, _MAX_CAUSE, _MAX_RECENT, _MAX_ABSENT = 20, 300, 10, 100
_MAX_ALL_PROBLEMS, _MAX_ALL_RECENT = 100, 50
_MAX_IMAGES = 10
# An order whose node is lost is taken over; if no node has done so after this many times the limit, none will.
_TAKEOVER_LIMITS = 3

_ENDS = frozenset({"completed", "limited", "failed", "timeout", "cancelled"})
# The worst result of the nodes is that of the order.
_BY_SEVERITY = ("cancelled", "lost", "failed", "timeout", "limited")


def report_of(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a node says to the others of the state of a job; None if it has lost the job."""
    if state is None:
        return {"result": "failed", "cause": "the node has lost the order with its index"}
    if state["result"] == "waiting":
        return {"result": "waiting"}
    kept = ("result", "began", "ended", "total", "tags", "bytes_fetched", "bytes_held")
    return {
        **{key: state[key] for key in kept},
        "problems": {image: str(cause)[:_MAX_CAUSE] for image, cause in list(state["problems"].items())[:_MAX_PROBLEMS]},
        "absent": state.get("absent", [])[:_MAX_ABSENT],
        "images": state.get("images", []),
        "recent": state["recent"][-_MAX_RECENT:],
    }


@dataclass
class _Part:
    """What one node has done.

    Attributes:
        age: of its report, in seconds.
    """

    node: str
    state: str
    cause: str | None = None
    began: float | None = None
    ended: float | None = None
    total: int = 0
    tags: dict[str, int] = field(default_factory=dict)
    bytes_fetched: int = 0
    bytes_held: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    recent: list[dict[str, Any]] = field(default_factory=list)
    age: float = 0.0

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDS or self.state == "lost"

    def figures(self) -> dict[str, Any]:
        counts = {"total": self.total, "tags": self.tags, "bytes_fetched": self.bytes_fetched, "bytes_held": self.bytes_held}
        begun = {} if self.began is None else {"began": self.began, "ended": self.ended, **counts}
        return {"name": self.node, "state": self.state, "cause": self.cause, **begun}


def merged(record: OrderRecord, lost_after_s: float) -> dict[str, Any] | None:
    """Return the state of an order, with that of each node that carries it out; None if this version cannot read the order.

    Args:
        lost_after_s: a node that has not reported for so many seconds, and has not ended its part, is lost.
    """
    job = SyncJob.read(record.job.name, record.job.row)
    if job is None:
        return None
    reports = record.reports if job.share == "all" else {key: one for key, one in record.reports.items() if key == record.owner}
    parts = [_part(node, report, lost_after_s) for node, report in sorted(reports.items())]
    result = _result(record, job, parts, lost_after_s)
    shared = {"result": result, "nodes": [part.figures() for part in parts], "cause": None}
    if result == "waiting":
        first, more = job.images[:_MAX_IMAGES], len(job.images[_MAX_IMAGES:])
        return {"name": job.name, **job.row(), "images": list(first), "more": more, **shared}
    return {**_summary(job, parts, result), **shared}


def _result(record: OrderRecord, job: SyncJob, parts: list[_Part], lost_after_s: float) -> str:
    states = {part.state for part in parts}
    can_move = job.share == "one" and record.can_move and not record.is_cancelled
    if can_move and states == {"lost"} and all(part.age < _TAKEOVER_LIMITS * lost_after_s for part in parts):
        # Another node takes it over in a moment.
        return "waiting"
    if not all(part.has_ended for part in parts):
        return "waiting" if states <= {"told", "waiting", "lost"} else "running"
    if record.is_cancelled and states & {"cancelled", "lost"}:
        return "cancelled"
    worst = next((state for state in _BY_SEVERITY if state in states), "completed")
    if worst == "completed" and _absent(parts):
        worst = "failed"
    return "failed" if worst == "lost" or not parts else worst


def _summary(job: SyncJob, parts: list[_Part], result: str) -> dict[str, Any]:
    tags: Counter[str] = Counter()
    for part in parts:
        tags.update(part.tags)
    is_running = result == "running"
    recent = sorted((row for part in parts for row in _named(part, part.recent, parts)), key=_time)[-_MAX_ALL_RECENT:]
    summary: dict[str, Any] = {
        "name": job.name,
        "kind": job.kind,
        "by": job.by,
        "created": job.created,
        "began": min((part.began for part in parts if part.began is not None), default=job.created),
        "ended": None if is_running else max((part.ended for part in parts if part.ended is not None), default=time.time()),
        "total": sum(part.total for part in parts),
        "tags": dict(tags),
        "bytes_fetched": sum(part.bytes_fetched for part in parts),
        "bytes_held": sum(part.bytes_held for part in parts),
        "problems": _problems(parts),
        "recent": recent,
    }
    return {**summary, "images": [row for part in parts for row in _named(part, part.images, parts)]} if is_running else summary


def _named(part: _Part, rows: list[dict[str, Any]], parts: list[_Part]) -> list[dict[str, Any]]:
    """Return rows with their node, if there are several."""
    return rows if len(parts) == 1 else [{**row, "node": part.node} for row in rows]


def _problems(parts: list[_Part]) -> dict[str, str]:
    """The problems of all nodes, by image; one that not all nodes have names those that have it."""
    nodes: dict[str, dict[str, list[str]]] = {}
    for part in parts:
        for image, cause in part.problems.items():
            nodes.setdefault(image, {}).setdefault(cause, []).append(part.node)
    found = {
        image: "; ".join(cause if len(at) == len(parts) else f"{cause} (at {', '.join(at)})" for cause, at in causes.items())
        for image, causes in nodes.items()
    }
    found |= dict.fromkeys(_absent(parts), NOT_HELD)
    found |= {part.node: part.cause for part in parts if part.cause is not None}
    return dict(list(found.items())[:_MAX_ALL_PROBLEMS])


def _absent(parts: list[_Part]) -> list[str]:
    """What the order names that no node holds, of those that have looked and ended."""
    looked = [set(part.absent) for part in parts if part.state in _ENDS and part.began is not None]
    return sorted(set.intersection(*looked)) if looked else []


def _part(node: str, report: Report, lost_after_s: float) -> _Part:
    part = _read(node, report.text)
    part.age = report.age
    if not part.has_ended and report.age > lost_after_s:
        part.state, part.cause = "lost", f"it has not reported for {report.age:.0f} s"
    return part


def _read(node: str, text: bytes) -> _Part:
    """Read a report, which a node of another version may have written."""
    if not text:
        return _Part(node, "told")
    try:
        said = json.loads(text)
        result = said["result"]
        if result == "waiting" or "began" not in said:
            known = result in _ENDS or result == "waiting"
            return _Part(node, result if known else "failed", None if said.get("cause") is None else str(said["cause"]))
        return _Part(
            node,
            result if result in _ENDS else "running",
            began=_when(said["began"]),
            ended=None if said["ended"] is None else _when(said["ended"]),
            total=int(said["total"]),
            tags={str(key): int(count) for key, count in said["tags"].items()},
            bytes_fetched=int(said["bytes_fetched"]),
            bytes_held=int(said["bytes_held"]),
            problems={str(image): str(cause) for image, cause in said["problems"].items()},
            absent=[str(image) for image in said["absent"]],
            images=[{"image": str(one["image"]), "bytes": int(one["bytes"]), "size": int(one["size"])} for one in said["images"]],
            recent=[_image_result(one) for one in said["recent"]],
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return _Part(node, "failed", "it reports in a form that this version does not know")


def _when(value: Any) -> float:
    when = float(value)
    if not math.isfinite(when):
        raise ValueError(value)
    return when


def _image_result(row: dict[str, Any]) -> dict[str, Any]:
    cause = None if row["cause"] is None else str(row["cause"])
    counts = {key: int(row[key]) for key in ("bytes_fetched", "bytes_held")}
    texts = {key: str(row[key]) for key in ("image", "result")}
    old = {} if row.get("old") is None else {"old": str(row["old"])}
    return {**texts, **counts, **old, "cause": cause, "time": _when(row["time"])}


def _time(image: dict[str, Any]) -> float:
    when: float = image["time"]
    return when
