"""The parts of the status page: charts, the list of images, downloads, problems, and values that viewers share."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.admin.page.catalog import PAGE_SIZE, Catalog
from mirror.admin.page.charts import HEIGHT, WINDOWS, charts
from mirror.admin.page.overview import downloads, problems, pulls_left
from mirror.admin.page.shared_value import SharedValue
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.core.traffic import Traffic
from mirror.storage.images import Image
from tests.support.waiting import LIMIT

NOW = 30_000_000
GIB = 1 << 30


# ---- charts


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_charts_of_nothing(window):
    """No column, no division by zero."""
    found = charts(window, [], NOW)
    assert len(found.columns) == window.count
    assert {(column.hits, column.served, column.fetched) for column in found.columns} == {(None, 0.0, 0.0)}
    assert found.total == Traffic()


def test_charts_fit_and_are_seen():
    """The highest column is within the chart, and the smallest is not nothing."""
    grown = [(NOW, Traffic(10, 9, 7 * GIB, 1)), (NOW - 5, Traffic(3, 0, 0, 0)), (NOW - 100_000, Traffic(1, 1, 1, 1))]
    found = charts(WINDOWS["1h"], grown, NOW)
    last, older = found.columns[-1], found.columns[-6]
    assert (last.hits, older.hits) == (90.0, 0.0)
    assert 0 < last.fetched < 2 < last.served <= HEIGHT
    assert found.top >= 7 * GIB
    assert found.total == Traffic(13, 9, 7 * GIB, 1)
    assert last.title.endswith("UTC")


# ---- the list of images


def image(number, registry="docker.io", path="team/app"):
    digest = Digest.of(str(number).encode())
    tag = None if number == 0 else Tag.parse(f"v{number}")
    return Image(Repository.parse(registry, path), tag, digest, number * 10, 1000.0 - number, complete=number % 2 == 0)


def names(page):
    return [row.name for row in page.rows]


def test_images_are_found():
    """By a part of the name in any case, or by a glob over all of it."""
    catalog = Catalog([image(1), image(2, "ghcr.io", "owner/tool"), image(0)], [])
    assert names(catalog.page("TOOL", "name", 1)) == ["ghcr.io/owner/tool:v2"]
    assert names(catalog.page("*/app:v?", "name", 1)) == ["docker.io/team/app:v1"]
    assert names(catalog.page("@sha256", "name", 1)) == [f"docker.io/team/app@{Digest.of(b'0')}"]
    assert names(catalog.page("<script>", "name", 1)) == []
    assert names(catalog.page("[", "name", 1)) == []
    assert len(catalog.page("  ", "name", 1).rows) == 3


def test_best_match_comes_first():
    """As in the search: the repository itself, then one that ends with the text, then those that begin with it."""
    paths = ("a/x-app-y", "owner/app-tools", "owner/app", "library/app")
    catalog = Catalog([image(1, "docker.io", path) for path in paths], [])
    found = [f"docker.io/{path}:v1" for path in reversed(paths)]
    assert names(catalog.page("APP", "name", 1)) == found
    assert names(catalog.page("library/app", "name", 1)) == found[:1]
    assert names(catalog.page("", "name", 1)) == sorted(found)
    assert names(catalog.page("*app*", "name", 1)) == sorted(found)


def test_images_are_sorted_and_paged():
    """Every image is on one page; a page that does not exist is the nearest one."""
    catalog = Catalog([image(number + 1) for number in range(2 * PAGE_SIZE + 5)], [])
    pages = [catalog.page("", "size", number) for number in (1, 2, 3)]
    rows = [row for page in pages for row in page.rows]
    assert [row.size for row in rows] == sorted((row.size for row in rows), reverse=True)
    assert len({row.name for row in rows}) == 2 * PAGE_SIZE + 5
    assert {(page.pages, page.found, page.size) for page in pages} == {(3, len(rows), sum(row.size for row in rows))}
    assert catalog.page("", "size", 99).number == 3
    assert catalog.page("", "size", -1).number == 1
    assert catalog.page("", "pulled", 1).rows[0].pulled == 999.0
    assert catalog.page("", "unused", 1).rows[0].pulled == min(row.pulled for row in rows)


def test_registries_are_summed():
    """The largest first."""
    stored = [{"registry": "docker.io", "bytes": 25, "max_size": 0}, {"registry": "quay.io", "bytes": 0, "max_size": 7}]
    totals = Catalog([image(1), image(2), image(9, "ghcr.io")], stored).totals
    assert [(total["registry"], total["images"], total["bytes"], total["stored"], total["max_size"]) for total in totals] == [
        ("ghcr.io", 1, 90, 0, 0), ("docker.io", 2, 30, 25, 0), ("quay.io", 0, 0, 0, 7),
    ]  # fmt: skip


# ---- the overview


def test_downloads_are_sorted():
    """The one that most wait for is the first; the share of one without a size is not known."""
    entry = {"image": None, "bytes": 0, "size": None, "readers": 0}
    found = downloads([{**entry, "digest": "b"}, {**entry, "digest": "a", "readers": 3, "bytes": 12, "size": 100}])
    assert [(one["digest"], one["share"]) for one in found] == [("a", 0.12), ("b", None)]


STATUS = {
    "draining": False, "store_writable": True, "credentials": {}, "files": {},
    "checks": {"storage": {"ok": True, "text": "fine"}},
    "upstreams": [{"registry": "docker.io", "name": "hub", "up": True, "state": "up", "pulls_left": None}],
    "store": {"free": 10 * GIB, "min_free": GIB}, "cluster": None, "objects": {"up": True, "problem": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"draining": True}, "stopping"),
        ({"store_writable": False}, "cannot be written"),
        ({"credentials": {"docker.io": "hub: refused"}}, "Account of docker.io: hub: refused"),
        ({"files": {"tls.key": "cannot be read"}}, "tls.key: cannot be read"),
        ({"checks": {"storage": {"ok": False, "text": "too small"}}}, "Check storage: too small"),
        ({"upstreams": [{**STATUS["upstreams"][0], "up": False, "state": "down"}]}, "hub (docker.io): down"),
        ({"cluster": {"redis": "alone", "cause": "refused", "nodes": []}}, "by itself: refused"),
        (
            {"objects": {"up": False, "problem": "403 Forbidden"}},
            "The bucket is not used, upstream is asked instead: 403 Forbidden",
        ),
        ({"objects": {"up": False, "problem": None}}, "it does not answer"),
        ({"store": {"free": 0, "min_free": GIB}}, "free on the disk"),
        ({"store": {"free": None, "min_free": GIB}}, "free on the disk"),
    ],
)
def test_each_problem_is_said_once(change, said):
    """And nothing else is; a healthy mirror has none."""
    assert problems(STATUS) == []
    (problem,) = problems({**STATUS, **change})
    assert said in problem


def test_one_limit_for_a_registry():
    """The limit belongs to the account, not to one of its upstreams."""
    one = {"registry": "docker.io", "pulls_left": 5}
    assert pulls_left([one, one, {"registry": "ghcr.io", "pulls_left": None}]) == [one]


# ---- values that viewers share


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor


async def test_one_work_for_all_who_ask(executor):
    """However many ask at the same time, and within the time."""
    release, made = threading.Event(), []

    def work():
        assert release.wait(LIMIT)
        made.append(1)
        return len(made)

    value = SharedValue(executor, work, 1000.0)
    asking = [asyncio.create_task(value.get()) for _ in range(20)]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*asking) == [1] * 20
    assert await value.get() == 1
    value.drop()
    assert await value.get() == 2


async def test_what_was_made_before_a_change_is_not_kept(executor):
    """Work that began before `drop` answers its own askers, and nobody else."""
    begun, release, made = threading.Event(), threading.Event(), []

    def work():
        made.append(1)
        number = len(made)
        begun.set()
        assert release.wait(LIMIT)
        return number

    value = SharedValue(executor, work, 1000.0)
    asking = asyncio.create_task(value.get())
    assert await asyncio.to_thread(begun.wait, LIMIT)
    value.drop()
    release.set()
    assert await value.get() == 2
    assert await asking == 1
    assert await value.get() == 2


async def test_a_failure_is_not_kept(executor):
    """Who asks is told; the next one makes the value anew."""
    answers = [ValueError("no"), 7]

    def work():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    value = SharedValue(executor, work, 1000.0)
    with pytest.raises(ValueError, match="no"):
        await value.get()
    assert await value.get() == 7


# ---- the library of the templates


def test_the_library_comes_with_the_first_page():
    """A mirror starts without it, for most are never looked at."""
    code = "import sys, mirror.service.run; print([name for name in sys.modules if name in ('jinja2', 'markupsafe')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"
