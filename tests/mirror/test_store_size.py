"""The store keeps its bounds under load: never above the cap, every pull right, and what goes is what nobody uses."""

import asyncio
import contextlib
import os
import sqlite3
import time

import pytest

from mirror.cache import usage
from mirror.errors import StorageError
from mirror.storage.account import on_disk
from tests.fakehub import Rule
from tests.mirror.images import age, contents, pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB
from tests.support.waiting import LIMIT, SOON, eventually

MANIFEST = f"/v2/{APP}/manifests"
BLOB = f"/v2/{APP}/blobs"


@pytest.fixture(autouse=True)
def scans():
    """Those of production."""


@pytest.fixture
async def bounded(hub, tmp_path, blobs_only):
    """Makes mirrors with a cap over one store."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(cap, **settings):
            storage = {"max_size": str(cap), "scrub_interval": "0"}
            under_test = MirrorUnderTest(hub, tmp_path / "store", storage=storage, **settings)
            return await stack.enter_async_context(under_test)

        yield start


def sizes(mirror):
    """Bytes of what is held and in the making, as whole blocks; nothing new is begun while they are added up."""
    found = {}
    with mirror.quiet_quota():
        for kind in ("partial", "blobs"):
            for directory, _, names in os.walk(mirror.store_path / kind):
                for name in names:
                    with contextlib.suppress(OSError):
                        state = os.stat(f"{directory}/{name}")
                        if not name.endswith(".map"):
                            found[state.st_ino] = on_disk(state.st_size)
    return sum(found.values())


class Watch:
    """Looks at account and disk all the time, in a thread of its own."""

    def __init__(self, mirror):
        self._mirror = mirror
        self._done = False
        self.highest = self.looks = 0

    async def __aenter__(self):
        self._task = asyncio.create_task(asyncio.to_thread(self._look))
        return self

    async def __aexit__(self, *_):
        self._done = True
        await self._task

    def _look(self):
        while not self._done:
            self.highest = max(self.highest, self._mirror.store.quota.used(), sizes(self._mirror))
            self.looks += 1
            time.sleep(0.01)


async def test_many_pulls_through_a_small_store(hub, bounded):
    """Three times the cap through it by eight clients at once: never above the cap, every pull right, and the account exact."""
    cap = 6 * MIB
    mirror = await bounded(cap)
    images = {f"{i}": hub.add_image(APP, f"{i}", layers=[os.urandom(300 * KIB) for _ in range(3)]) for i in range(21)}

    async def client(number):
        for i in range(number, number + 21, 2):
            tag = f"{i % 21}"
            await pull_loosely(mirror, images[tag], tag)

    async with Watch(mirror) as watch:
        await asyncio.gather(*(client(number) for number in range(8)))
        await mirror.idle()
    assert watch.looks > 20
    assert watch.highest <= cap
    assert watch.highest > cap // 2
    assert await mirror.metric("evicted_bytes_total", reason="max_size") > 3 * MIB
    # The last eviction may be under way.
    await eventually(lambda: mirror.store.quota.used() == sizes(mirror))
    await eventually(lambda: mirror.store.quota.figures()[1] == len(list(mirror.store.files.walk())))
    await eventually(lambda: mirror.metric("storage_bytes"), holds=lambda seen: seen == sizes(mirror))
    assert await mirror.metric("storage_limit_bytes") == cap


async def pull_loosely(mirror, image, tag):
    """Like `pull`, while others pull."""
    answer = await mirror.get(f"{MANIFEST}/{tag}")
    assert answer.body == image.raw
    for blob in [image.config, *image.layers]:
        assert (await mirror.get(f"{BLOB}/{blob.digest}")).sha256 == blob.digest


async def test_two_mirrors_over_one_small_store(hub, bounded):
    """Two mirrors with one store keep one cap between them."""
    cap = 4 * MIB
    mirrors = [await bounded(cap), await bounded(cap)]
    images = {f"{i}": hub.add_image(APP, f"{i}", layers=[os.urandom(500 * KIB)] * 2) for i in range(14)}

    async def client(mirror, step):
        for i in range(14):
            tag = f"{(i * step) % 14}"
            await pull_loosely(mirror, images[tag], tag)

    async with Watch(mirrors[0]) as watch:
        await asyncio.gather(*(client(mirror, step) for mirror in mirrors for step in (1, 3, 5)))
        for mirror in mirrors:
            await mirror.idle()
    assert watch.highest <= cap
    assert mirrors[0].store.quota.used() == sizes(mirrors[0])


async def test_larger_than_the_cap(hub, bounded):
    """A blob that can never fit goes past the store each time, and nothing has to go for it."""
    mirror = await bounded(1 * MIB)
    image = hub.add_image(APP, "1", layers=[os.urandom(100 * KIB)])
    await pull(mirror, image, "1")
    large = hub.add_synthetic_blob(APP, 3 * MIB)
    for _ in range(2):
        answer = await mirror.get(f"{BLOB}/{large.digest}")
        assert (answer.status, answer.cache, answer.sha256) == (200, "BYPASS", large.digest)
    assert all(mirror.holds(digest) for digest in contents(image))
    assert mirror.partials() == []
    assert mirror.store.quota.used() == sizes(mirror)
    assert await mirror.metric("downloads_total", result="bypassed") == 2


async def test_room_taken_by_blobs_in_the_making(hub, bounded, monkeypatch):
    """If all room is taken by what is under way, a further blob goes past the store at once, and nothing held goes in vain."""
    monkeypatch.setattr("mirror.maintenance.janitor._ROOM_TIMEOUT_S", LIMIT)
    mirror = await bounded(4 * MIB)
    held = hub.add_image(APP, "1", layers=[b"small"])
    await pull(mirror, held, "1")
    first, second = hub.add_synthetic_blob(APP, 3 * MIB, seed=1), hub.add_synthetic_blob(APP, 2 * MIB, seed=2)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=1 * MIB)
    pulling = asyncio.create_task(mirror.get(f"{BLOB}/{first.digest}"))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    async with asyncio.timeout(SOON):
        answer = await mirror.get(f"{BLOB}/{second.digest}")
    assert (answer.cache, answer.sha256) == ("BYPASS", second.digest)
    assert all(mirror.holds(digest) for digest in contents(held))
    gate.release()
    answer = await pulling
    assert (answer.cache, answer.sha256) == ("MISS", first.digest)
    await mirror.idle()
    assert mirror.holds(first.digest)
    # Now there is something that may go.
    assert (await mirror.get(f"{BLOB}/{second.digest}")).cache == "MISS"
    await mirror.idle()
    assert not mirror.holds(first.digest)
    assert (await mirror.get(f"{BLOB}/{second.digest}")).cache == "HIT"


async def test_partials_count(hub, bounded):
    """What an interrupted download has reserved counts like anything else, for the next mirror over the store too."""
    mirror = await bounded(8 * MIB)
    blob = hub.add_synthetic_blob(APP, 5 * MIB)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=1 * MIB)
    pulling = asyncio.create_task(mirror.get(f"{BLOB}/{blob.digest}"))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    # What upstream has sent need not have been begun with yet.
    await eventually(lambda: sizes(mirror))
    assert mirror.store.quota.used() == sizes(mirror) == 5 * MIB
    mirror.store.quota.release(3 * MIB)
    mirror.services.janitor.count()
    assert mirror.store.quota.used() == 5 * MIB
    gate.release()
    await pulling
    await mirror.idle()
    assert mirror.store.quota.used() == sizes(mirror) == 5 * MIB


async def test_idle_partials_go_first(hub, bounded):
    """What nobody has filled for hours makes room before anything that is held does."""
    mirror = await bounded(4 * MIB)
    image = hub.add_image(APP, "1", layers=[os.urandom(500 * KIB)])
    await pull(mirror, image, "1")
    blob = hub.add_synthetic_blob(APP, 3 * MIB)
    partial = mirror.store_path / "partial" / "sha256" / blob.digest[7:]
    partial.touch()
    os.truncate(partial, 3 * MIB)
    os.utime(partial, (1, 1))
    mirror.store.quota.claim(3 * MIB, "")
    other = hub.add_synthetic_blob(APP, 2 * MIB, seed=3)
    answer = await mirror.get(f"{BLOB}/{other.digest}")
    assert (answer.cache, answer.sha256) == ("MISS", other.digest)
    await mirror.idle()
    assert not partial.exists()
    assert all(mirror.holds(digest) for digest in contents(image))
    assert mirror.store.quota.used() == sizes(mirror)


async def test_image_in_use_keeps_its_layers(hub, bounded):
    """An image of which only the manifest is asked for, as by clients that have the layers, is in use as a whole."""
    mirror = await bounded(3600 * KIB)
    shared = os.urandom(700 * KIB)
    used = hub.add_image(APP, "used", layers=[shared, os.urandom(300 * KIB)])
    idle = hub.add_image(APP, "idle", layers=[shared, os.urandom(900 * KIB)])
    await pull(mirror, used, "used")
    await pull(mirror, idle, "idle")
    # What the pulls have noted would be written over the ages below, and lies within the time by which parts count as used later.
    mirror.usage.write(mirror.store.files, mirror.store.index)
    age(mirror, used, 1_000)
    age(mirror, idle, 2_000)
    assert (await mirror.get(f"{MANIFEST}/used")).cache == "HIT"
    blob = hub.add_synthetic_blob(APP, 2 * MIB)
    assert (await mirror.get(f"{BLOB}/{blob.digest}")).cache == "MISS"
    await mirror.idle()
    assert all(mirror.holds(digest) for digest in contents(used))
    assert not mirror.holds(idle.layers[1].digest)
    hub.reset_counters()
    assert await pull(mirror, used, "used") == ["HIT"] * 4
    assert hub.count("GET", "blob") == 0


async def test_manifest_goes_before_its_layers(hub, mirror):
    """After its use was noted, an index is the first to go, then its manifests, then configuration and layers."""
    image = hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64"], layers=[b"tiny"])
    await mirror.get(f"{MANIFEST}/1")
    for child in image.children.values():
        await mirror.get(f"{MANIFEST}/{child.digest}")
        for blob in [child.config, *child.layers]:
            await mirror.get(f"{BLOB}/{blob.digest}")
    await mirror.idle()
    mirror.usage.write(mirror.store.files, mirror.store.index)
    await mirror.get(f"{MANIFEST}/1")
    mirror.usage.write(mirror.store.files, mirror.store.index)
    used = {digest: mirror.blob_path(digest).stat().st_mtime for digest in contents(image)}
    for child in image.children.values():
        assert used[image.digest] < used[child.digest] < used[child.config.digest] <= time.time() + 3 * usage._PART_DELAY_S
        assert used[child.digest] < used[child.layers[0].digest]


async def test_index_without_its_children(hub, bounded):
    """In an outage, an index is not served once eviction has taken what it leads to; the tag is known again afterwards."""
    mirror = await bounded(2 * MIB, tags={"ttl": "0s"})
    image = hub.add_image(APP, "1", platforms=["linux/amd64"], layers=[os.urandom(800 * KIB)])
    (child,) = image.children.values()
    await mirror.get(f"{MANIFEST}/1")
    assert (await mirror.get(f"{MANIFEST}/{child.digest}")).status == 200
    for blob in [child.config, *child.layers]:
        await mirror.get(f"{BLOB}/{blob.digest}")
    await mirror.idle()
    await hub.stop()
    assert (await mirror.get(f"{MANIFEST}/1")).cache == "STALE"
    await hub.start()
    await mirror.recovered()
    # The layer is the oldest, whatever the rule says: a disk that lost times.
    age(mirror, [child.layers[0].digest], 1_000)
    mirror.usage.write(mirror.store.files, mirror.store.index)
    age(mirror, [child.layers[0].digest], 1_000)
    other = hub.add_synthetic_blob(APP, 1500 * KIB)
    await mirror.get(f"{BLOB}/{other.digest}")
    await mirror.idle()
    assert not mirror.holds(child.layers[0].digest)
    await hub.stop()
    assert (await mirror.get(f"{MANIFEST}/1")).status == 503
    await hub.start()
    await mirror.recovered()
    assert (await mirror.get(f"{MANIFEST}/1")).body == image.raw
    assert (await mirror.get(f"{BLOB}/{child.layers[0].digest}")).sha256 == child.layers[0].digest


async def test_pinned_go_last(hub, bounded, log):
    """What a pinned tag needs stays while anything else may go; when it has to go all the same, a warning says so."""
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "tags": [{"match": "library/app:pinned", "pin": True}]}
    mirror = await bounded(4 * MIB, registries={"docker.io": registry}, log={"level": "debug"})
    pinned = hub.add_image(APP, "pinned", layers=[os.urandom(1 * MIB)])
    other = hub.add_image(APP, "other", layers=[os.urandom(1 * MIB)])
    await pull(mirror, pinned, "pinned")
    await pull(mirror, other, "other")
    mirror.usage.write(mirror.store.files, mirror.store.index)
    age(mirror, pinned, 1_000)
    first, second = hub.add_synthetic_blob(APP, 2 * MIB, seed=1), hub.add_synthetic_blob(APP, 3500 * KIB, seed=2)
    await mirror.get(f"{BLOB}/{first.digest}")
    await mirror.idle()
    assert all(mirror.holds(digest) for digest in contents(pinned))
    assert not mirror.holds(other.layers[0].digest)
    assert not [event for event in log if event["event"] == "pinned_evicted"]
    assert (await mirror.get(f"{BLOB}/{second.digest}")).cache == "MISS"
    await mirror.idle()
    assert not mirror.holds(first.digest)
    assert not mirror.holds(pinned.layers[0].digest)
    (warning,) = [event for event in log if event["event"] == "pinned_evicted"]
    assert (warning["log_level"], warning["blobs"] >= 1) == ("warning", True)
    assert await pull(mirror, pinned, "pinned")


async def test_nothing_goes_while_nobody_knows_what_is_pinned(hub, bounded, log):
    """While the index cannot tell what is pinned nothing is evicted, and new blobs go past the store."""
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "tags": [{"match": "library/app:pinned", "pin": True}]}
    mirror = await bounded(4 * MIB, registries={"docker.io": registry}, log={"level": "debug"})
    pinned = hub.add_image(APP, "pinned", layers=[os.urandom(3 * MIB)])
    await pull(mirror, pinned, "pinned")
    await mirror.idle()
    age(mirror, pinned, 1_000)
    database = sqlite3.connect(f"{mirror.store.layout.index}/tags/cache.db", isolation_level=None)
    with contextlib.closing(database):
        database.execute("ALTER TABLE Cache RENAME TO Gone")
        blob = hub.add_synthetic_blob(APP, 2 * MIB, seed=1)
        await mirror.services.janitor.make_room(2 * MIB)
        assert (await mirror.get(f"{BLOB}/{blob.digest}")).sha256 == blob.digest
        assert all(mirror.holds(digest) for digest in contents(pinned))


async def test_low_water_mark(hub, bounded):
    """The janitor evicts ahead of need: above the high-water mark down to the low one, and not below it."""
    mirror = await bounded(4 * MIB)
    for i in range(38):
        blob = hub.add_synthetic_blob(APP, 100 * KIB, seed=i)
        await mirror.get(f"{BLOB}/{blob.digest}")
    await mirror.idle()
    mirror.services.janitor.evict()
    assert mirror.store.quota.used() == 38 * 100 * KIB
    for i in range(38, 40):
        blob = hub.add_synthetic_blob(APP, 100 * KIB, seed=i)
        await mirror.get(f"{BLOB}/{blob.digest}")
    await mirror.idle()
    assert mirror.store.quota.used() > 0.95 * 4 * MIB
    while mirror.services.janitor.evict():
        pass
    assert 0.85 * 4 * MIB < mirror.store.quota.used() <= 0.90 * 4 * MIB
    assert await mirror.metric("evicted_bytes_total", reason="max_size") == 40 * 100 * KIB - mirror.store.quota.used()


async def test_rows_of_evicted_content_go(hub, bounded):
    """What the index knows of content that is gone goes too: at once what is learned by the next pull, and tags after a day."""
    mirror = await bounded(4 * MIB)
    image = hub.add_image(APP, "1", layers=[os.urandom(100 * KIB)])
    await pull(mirror, image, "1")
    store, leftovers = mirror.store, mirror.services.janitor.leftovers
    leftovers.clear()
    assert len(list(store.index.manifests.rows())) == 1
    # Of each part: that the repository was given it, and that the registry has given it to anybody.
    await eventually(lambda: len(list(store.index.tables["grants"].keys())) == 6, "the grants in the index")
    for digest in contents(image):
        store.files.delete(next(file.digest for file in store.files.walk() if str(file.digest) == digest))
    leftovers.clear()
    assert list(store.index.manifests.rows()) == list(store.index.tables["grants"].keys()) == []
    assert len(list(store.index.tags.matching())) == 1
    leftovers._delete_stale_rows(time.time() + 90_000)
    assert list(store.index.tables["tags"].keys()) == []
    mirror.store.generation.change()
    assert await pull(mirror, image, "1") == ["MISS"] * 3
    assert await pull(mirror, image, "1") == ["HIT"] * 3


async def test_recount_after_a_crash(hub, bounded):
    """An account that a crash left wrong, or lost, is right again after a count."""
    mirror = await bounded(8 * MIB)
    image = hub.add_image(APP, "1", layers=[os.urandom(100 * KIB), os.urandom(33)])
    await pull(mirror, image, "1")
    right = mirror.store.quota.figures()
    assert right == (sizes(mirror), 4)
    mirror.store.quota.claim(1 * MIB, "a file that never came")
    assert mirror.services.janitor.count()
    assert mirror.store.quota.figures() == right
    os.unlink(mirror.store_path / "account")
    assert mirror.services.janitor.count()
    assert mirror.store.quota.figures() == right


async def test_a_failing_disk_is_told_briefly(bounded, monkeypatch, log):
    """What the disk refuses again and again is a line at times, without a traceback."""
    monkeypatch.setattr("mirror.maintenance.janitor._INTERVAL_S", 0.005)
    failures = []

    def fail(*_):
        failures.append(True)
        raise StorageError("reading the account of the store: Input/output error", "io")

    monkeypatch.setattr("mirror.maintenance.janitor.Janitor.evict", fail)
    await bounded(0)
    await eventually(lambda: len(failures) > 30)
    lines = [event for event in log if event["event"] == "janitor_failed"]
    assert 1 <= len(lines) < 20
    assert {(line["work"], line["cause"]) for line in lines} == {
        ("evict", "reading the account of the store: Input/output error")
    }
    assert not [line for line in lines if "exc_info" in line]
