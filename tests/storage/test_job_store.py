"""The ledger: orders of any length, replaced and removed by name, and what is no row of it."""

import pytest

from mirror.storage.job_store import JobStore


@pytest.fixture
def ledger(tmp_path):
    with_end = JobStore(str(tmp_path))
    yield with_end
    with_end.close()


def order(count, **changes):
    return {"kind": "sync", "images": [f"app:{number}" for number in range(count)], "asked": 1.0, **changes}


@pytest.mark.parametrize("count", [0, 1, 10, 11, 1000])
def test_order(ledger, count):
    """An order comes back as it was given; a look at all orders shows its first images and how many more there are."""
    assert ledger.put("a", order(count))
    assert ledger.get("a") == order(count)
    ((name, row),) = ledger.pending()
    assert (name, row["images"], row["more"]) == ("a", order(count)["images"][:10], max(0, count - 10))
    assert ledger.count_pending() == 1
    ledger.delete_unchanged("a", order(count))
    assert (ledger.get("a"), ledger.pending(), ledger.count_pending()) == (None, [], 0)


def test_replaced(ledger):
    """Of two orders of one name the later one stands, and is not removed with the earlier one."""
    for first, second in ((order(1000), order(3)), (order(3), order(1000)), (order(20), order(20, asked=2.0))):
        ledger.put("a", first)
        ledger.put("a", second)
        assert ledger.get("a") == second
        ledger.delete_unchanged("a", first)
        assert ledger.get("a") == second
        ledger.delete_unchanged("a", second)
        assert ledger.get("a") is None


def test_states(ledger):
    """A state is of the type that is asked for, or an empty one."""
    ledger.put_state("x", {"a": 1})
    assert (ledger.state("x", dict), ledger.state("x", list), ledger.state("none", float)) == ({"a": 1}, [], 0.0)


def test_results(ledger):
    """Only what has the parts of a result is one."""
    whole = {"result": "moved", "time": 1.0, "bytes_fetched": 1, "bytes_held": 0, "cause": None}
    ledger.put_result("app:1", whole)
    ledger.put_result("app:2", {"result": "moved"})
    assert dict(ledger.results()) == {"app:1": whole}
