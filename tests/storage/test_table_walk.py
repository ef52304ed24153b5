"""Walks over an index of any size: every key once, in order, at a price that grows with their number only."""

import sqlite3

import pytest

from mirror.core.digest import Digest
from mirror.storage import table as table_module
from mirror.storage.index import Index
from mirror.storage.table import Table


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "odd ?#% name")


@pytest.fixture
def table(directory):
    one = Table(directory)
    yield one
    one.close()


def execute(directory, statement, *values):
    database = sqlite3.connect(f"{directory}/cache.db")
    try:
        with database:
            return database.execute(statement, values).fetchall()
    finally:
        database.close()


def test_every_key_comes_once_and_in_order(table):
    """Keys are walked over in pages without one being lost or repeated, also while some go."""
    keys = [f"key {number:04}" for number in range(700)]
    for key in reversed(keys):
        table.set(key, 1)
    assert list(table.keys()) == keys
    for key in list(table.keys())[:300]:
        table.delete(key)
    for key in table.keys():  # noqa: SIM118 - no mapping
        table.delete(key)
    assert list(table.keys()) == []


def test_a_page_is_found_and_not_searched_for(table, directory):
    """The database goes straight to the first key of a page, so that a walk costs what its keys cost."""
    table.set("a", 1)
    plan = execute(directory, f"EXPLAIN QUERY PLAN {table_module._PAGE}", "")
    steps = [step[-1] for step in plan]
    assert len(steps) == 1
    assert steps[0].startswith("SEARCH")
    assert "key>?" in steps[0]


def test_keys_that_are_no_text_are_passed_over(table, directory):
    """Rows that nobody here has written hide no other."""
    table.set("good", 1)
    for key in (7, b"bytes", None):
        execute(directory, "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 3, '1')", key)
    assert list(table.keys()) == ["good"]


def test_dropping_grants_pauses_and_can_be_left(tmp_path):
    """A walk over many grants asks every few hundred whether it should go on, and leaves the rest alone if not."""
    index = Index(str(tmp_path / "index"))
    try:
        for number in range(600):
            index.grants.put("blob", "docker.io", Digest.of(b"%d" % number), number)
        answers = iter([False, True])
        dropped = index.grants.drop(lambda digest: False, lambda: next(answers))
        assert 0 < dropped < 600
        assert index.grants.drop(lambda digest: False) == 600 - dropped
    finally:
        index.close()
