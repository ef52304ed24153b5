"""What the reports of nodes come to, read by any node."""

import contextlib
import json
import types

import pytest

from mirror.cluster.events import Event
from mirror.cluster.orders import OrderRecord, Report, SharedJob
from mirror.storage.job_store import JobStore
from mirror.sync import cluster_orders
from mirror.sync.job import SyncJob
from mirror.sync.job_states import UNFINISHED
from mirror.sync.order_states import merged, report_of
from mirror.sync.plan import NOT_HELD

LOST_AFTER_S = 20.0


def report(result, *, age=1.0, **changed):
    """What a node has said some seconds ago."""
    said = {
        "result": result,
        "began": 100.0,
        "ended": None if result == "running" else 110.0,
        "total": 1,
        "tags": {"moved": 1},
        "bytes_fetched": 5,
        "bytes_held": 2,
        "problems": {},
        "absent": [],
        "images": [],
        "recent": [],
    }
    return Report(age, json.dumps({**said, **changed}).encode())


def state(kind="sync", *, owner="a", cancelled=False, can_move=True, **reports):
    share = "one" if kind == "warm" else "all"
    job = SyncJob("1-00000000", kind, tuple(f"app:{number}" for number in range(12)), (), 90.0, 90.0, "operator", share)
    record = OrderRecord(SharedJob(job.name, job.row(), 5.0), owner, cancelled, can_move, reports)
    return merged(record, LOST_AFTER_S)


def test_time_that_no_clock_shows():
    """An order with one is none of this version."""
    row = SyncJob("1-00000000", "sync", (), (), 90.0, 90.0, "operator", "all").row()
    record = OrderRecord(SharedJob("1-00000000", {**row, "asked": 10**400}, 5.0), "a", False, True, {})
    assert merged(record, LOST_AFTER_S) is None


@pytest.mark.parametrize(
    ("name", "kind", "is_read"),
    [("1-00000000", "sync", True), ("webhook-now-docker.io/library/app:1", "sync", False), ("1-00000000", "schedule", False)],
)
def test_orders_that_no_operator_gives(name, kind, is_read):
    """A node does not take them: they would take the place of its own jobs, or wait for ever."""
    row = SyncJob(name, kind, (), (), 90.0, 90.0, "operator", "all").row()
    assert (cluster_orders._read(SharedJob(name, row, 5.0)) is not None) is is_read


@pytest.mark.parametrize(("name", "is_cancelled"), [("1-00000000", True), ("webhook-now-docker.io/library/app:1", False)])
async def test_cancellations_that_no_operator_gives(tmp_path, name, is_cancelled):
    """A node has its other jobs cancelled by nobody else."""
    node = types.SimpleNamespace(orders=None, name="a", events=types.SimpleNamespace(handlers={}))
    job = SyncJob(name, "sync", ("app",), (), 90.0, 90.0, "operator")
    with contextlib.closing(JobStore(str(tmp_path))) as jobs:
        cluster_orders.ClusterOrders(jobs, node)
        jobs.put(name, job.row())
        await node.events.handlers["order_cancelled"](Event("1-0", 0.0, "order_cancelled", "b", {"order": name}))
        assert jobs.is_cancelled(name, job.created) is is_cancelled


TOLD = Report(1.0, b"")
WAITING = Report(1.0, b'{"result": "waiting"}')


@pytest.mark.parametrize(
    ("expected", "reports"),
    [
        ("waiting", {"a": TOLD, "b": WAITING}),
        ("running", {"a": report("running"), "b": TOLD}),
        ("running", {"a": report("completed"), "b": WAITING}),
        ("completed", {"a": report("completed"), "b": report("completed")}),
        ("limited", {"a": report("completed"), "b": report("limited")}),
        ("timeout", {"a": report("timeout"), "b": report("limited")}),
        ("failed", {"a": report("failed"), "b": report("timeout")}),
        ("running", {"a": report("running"), "b": report("running", age=21)}),
        ("failed", {"a": report("completed"), "b": report("running", age=21)}),
        ("failed", {"a": report("completed"), "b": Report(21, b"")}),
        ("completed", {"a": report("completed", age=50_000)}),
        ("failed", {}),
    ],
)
def test_result_of_all(expected, reports):
    assert state(**reports)["result"] == expected


@pytest.mark.parametrize(
    ("expected", "more", "own"),
    [
        ("running", {}, report("running")),
        ("waiting", {}, Report(1.0, b"")),
        # Another node takes it over, unless none has for too long, or none may.
        ("waiting", {}, report("running", age=21)),
        ("failed", {}, report("running", age=61)),
        ("failed", {"can_move": False}, report("running", age=21)),
        ("cancelled", {"cancelled": True}, report("running", age=21)),
        ("cancelled", {"cancelled": True}, report("cancelled")),
        ("completed", {"cancelled": True}, report("completed")),
    ],
)
def test_result_of_one(expected, more, own):
    """The report of an earlier owner does not count."""
    found = state("warm", **more, a=own, b=report("failed"))
    assert found["result"] == expected
    assert [one["name"] for one in found["nodes"]] == ["a"]


def test_figures_are_sums():
    image = {"image": "app:1", "result": "moved", "time": 1.0, "bytes_fetched": 5, "bytes_held": 0, "cause": None, "old": "x"}
    later = {**image, "time": 2.0}
    under_way = {"image": "app:2", "bytes": 1, "size": 2}
    first = report("running", began=99.0, images=[under_way], recent=[later])
    found = state(a=first, b=report("completed", recent=[image]))
    assert (found["total"], found["tags"], found["bytes_fetched"], found["bytes_held"]) == (2, {"moved": 2}, 10, 4)
    assert (found["began"], found["ended"]) == (99.0, None)
    assert found["images"] == [{**under_way, "node": "a"}]
    assert [(one["node"], one["time"]) for one in found["recent"]] == [("b", 1.0), ("a", 2.0)]


def test_problems_name_nodes():
    one = report("failed", problems={"app:1": "broken", "app:2": "gone"})
    other = report("failed", problems={"app:1": "broken"})
    found = state(a=one, b=other, c=report("running", age=30))
    assert found["problems"] == {
        "app:1": "broken (at a, b)",
        "app:2": "gone (at a)",
        "c": "it has not reported for 30 s",
    }


def test_absent_on_all_nodes():
    found = state(a=report("completed", absent=["x", "y"]), b=report("completed", absent=["y"]))
    assert (found["result"], found["problems"]) == ("failed", {"y": NOT_HELD})
    # A node that is lost may hold it, but nobody knows.
    found = state(a=report("completed", absent=["x"]), b=report("completed"))
    assert (found["result"], found["problems"]) == ("completed", {})


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"7",
        b'{"result": 7}',
        b'{"result": "completed"' + b', "began": 1e999' + b"}",
        json.dumps({**json.loads(report("completed").text), "began": "soon"}).encode(),
        json.dumps({**json.loads(report("completed").text), "tags": [1]}).encode(),
        json.dumps({**json.loads(report("completed").text), "total": float("inf")}).encode(),
        json.dumps({**json.loads(report("completed").text), "ended": float("nan")}).encode(),
        json.dumps({**json.loads(report("completed").text), "recent": ["x"]}).encode(),
        json.dumps({**json.loads(report("completed").text), "problems": 5}).encode(),
    ],
)
def test_garbage_is_a_failure(text):
    found = state(a=Report(1.0, text), b=report("completed"))
    assert found["result"] == "failed"
    json.dumps(found, allow_nan=False)


def test_waiting_order():
    found = state(a=TOLD)
    assert (len(found["images"]), found["more"], found["result"]) == (10, 2, "waiting")


@pytest.mark.parametrize("changed", [{"kind": "new"}, {"share": "some"}, {"asked": float("inf")}, {"images": 7}])
def test_unreadable_order(changed):
    row = {**SyncJob("1-00000000", "sync", (), (), 90.0, 90.0, "operator", "all").row(), **changed}
    assert merged(OrderRecord(SharedJob("1-00000000", row, 0.0), "a", False, True, {}), LOST_AFTER_S) is None


def test_report_is_bounded():
    many = {f"app:{number}": "x" * 5000 for number in range(100)}
    full = json.loads(report("running", problems=many, absent=list(many), recent=[{}] * 50).text)
    said = report_of(full)
    assert len(json.dumps(said)) < 12_000
    assert said["result"] in UNFINISHED


def test_lost_index():
    found = state(a=Report(1.0, json.dumps(report_of(None)).encode()))
    assert found["result"] == "failed"
    assert "lost the order" in found["problems"]["a"]
