"""Trust in the disk: what rots, shrinks or vanishes is noticed and fetched again, and a lost index is learned again."""

import asyncio
import os
import shutil
import threading
import time

import pytest

from mirror.cache.usage import Usage
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.maintenance.scrub import Pace, Scrub
from mirror.storage.blobs import BlobFiles, is_intact
from mirror.storage.generation import Generation
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.fakehub import Html, Rule
from tests.support.files import flip
from tests.support.names import APP, TAG

DAY = 86400.0


async def pulled(hub, mirror, **image):
    made = hub.add_image(APP, "1", **image)
    await mirror.get(TAG)
    for blob in [made.config, *made.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()
    return made


# ---- within a request


@pytest.mark.parametrize("damage", ["shrunk", "emptied", "grown", "vanished"])
@pytest.mark.parametrize("ranged", [False, True])
async def test_damaged_blob_is_fetched_in_the_same_request(hub, mirror, damage, ranged):
    """A blob that has not the size it should have, or is gone, is fetched again for the very request that finds it."""
    image = await pulled(hub, mirror, layers=[os.urandom(100_000)])
    (layer,), path = image.layers, mirror.blob_path(image.layers[0].digest)
    if damage == "vanished":
        path.unlink()
    else:
        os.truncate(path, {"shrunk": 50_000, "emptied": 0, "grown": 100_001}[damage])
    headers = {"Range": "bytes=60000-69999"} if ranged else {}
    answer = await mirror.get(f"/v2/{APP}/blobs/{layer.digest}", headers=headers)
    assert answer.body == (layer.data[60_000:70_000] if ranged else layer.data)
    assert answer.cache == "MISS"
    await mirror.idle()
    assert (await mirror.get(f"/v2/{APP}/blobs/{layer.digest}")).cache == "HIT"
    assert path.read_bytes() == layer.data


async def test_wrong_word_about_the_size_does_no_damage(hub, mirror, log):
    """A page in the place of a blob has another size; the right blob that comes next is not taken for damaged because of it."""
    image = hub.add_image(APP, "1", layers=[os.urandom(100_000)])
    (layer,) = image.layers
    path = f"/v2/{APP}/blobs/{layer.digest}"
    hub.script(Rule(host="cdn", method="GET"), Html())
    assert (await mirror.get(path)).status == 503
    await mirror.idle()
    assert mirror.holds(layer.digest)
    hub.reset_counters()
    answers = await asyncio.gather(*(mirror.get(path) for _ in range(10)))
    assert {(answer.cache, answer.sha256) for answer in answers} == {("HIT", layer.digest)}
    assert hub.count("GET", "blob") == 0
    assert not [event for event in log if event["event"] == "blob_damaged"]


@pytest.mark.parametrize("damage", ["flipped", "shrunk", "emptied", "vanished"])
@pytest.mark.parametrize("reference", ["tag", "digest"])
async def test_damaged_manifest_is_fetched_in_the_same_request(hub, mirror, damage, reference):
    """A manifest is hashed when it is read: one wrong bit, and it is fetched again and replaced."""
    image = await pulled(hub, mirror)
    path = mirror.blob_path(image.digest)
    if damage == "flipped":
        flip(path)
    elif damage == "vanished":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "emptied" else 10)
    mirror.store.generation.change()
    hub.reset_counters()
    for _ in range(3):
        answer = await mirror.get(TAG if reference == "tag" else f"/v2/{APP}/manifests/{image.digest}")
        assert (answer.status, answer.body) == (200, image.raw)
    assert hub.count("GET", "manifest", status=200) == 1
    assert path.read_bytes() == image.raw


async def test_damaged_manifest_in_an_outage(hub, mirror):
    """Wrong bytes are not served because nothing better is there."""
    image = await pulled(hub, mirror)
    flip(mirror.blob_path(image.digest))
    mirror.store.generation.change()
    await hub.stop()
    assert (await mirror.get(TAG)).status == 503


# ---- the index


async def test_index_lost_while_serving(hub, mirror):
    """Without its tables the mirror serves on, learns again, and fetches no blob a second time."""
    image = await pulled(hub, mirror)
    shutil.rmtree(mirror.store_path / "index")
    mirror.store.generation.change()
    hub.reset_counters()
    assert (await mirror.get(TAG)).body == image.raw
    for blob in [image.config, *image.layers]:
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).sha256 == blob.digest
    assert hub.count("GET", "blob") == 0


async def test_index_damaged_while_serving(hub, mirror):
    """Tables that turn to rubbish under the mirror cost some questions upstream, and no wrong answer."""
    image = await pulled(hub, mirror)
    for database in (mirror.store_path / "index").rglob("cache.db*"):
        os.truncate(database, 0)
        database.write_bytes(b"rubbish" * 2000)
    mirror.store.generation.change()
    hub.reset_counters()
    for _ in range(3):
        assert (await mirror.get(TAG)).body == image.raw
    for blob in [image.config, *image.layers]:
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).sha256 == blob.digest
    assert hub.count("GET", "blob") == 0
    assert (await mirror.get("/v2/library/none/manifests/1")).status == 404


# ---- the scrub


@pytest.fixture
def layout(tmp_path):
    layout = Layout(str(tmp_path / "store"))
    layout.prepare()
    return layout


@pytest.fixture
def files(layout):
    return BlobFiles(layout, SpaceQuota(layout, 0, 0))


@pytest.fixture
def generation(layout):
    one = Generation(f"{layout.root}/generation")
    yield one
    one.close()


def put(files, data):
    digest = Digest.of(data)
    files.put(digest, data)
    return digest


class Scrubbing:
    """A scrub with a clock of its own."""

    def __init__(self, layout, files, generation, interval=256.0):
        self.results, self.now = [], 1_000_000.0
        self._make = lambda: Scrub(layout, files, generation, interval, self.results.append)
        self.restart()

    def restart(self):
        self.scrub = self._make()

    def shards(self, count):
        """Let so many shards come due, one after the other."""
        for _ in range(count):
            self.scrub.step(self.now)
            self.now += 1.0


def test_scrub_comes_by_everything_once_in_an_interval(layout, files, generation):
    """Over one interval each blob is hashed once, a wrong one is dropped, and every process forgets."""
    blobs = [put(files, b"%d" % i) for i in range(60)]
    flip_path = layout.blob(blobs[7])
    with open(flip_path, "r+b") as file:
        file.write(b"8")
    scrubbing, before = Scrubbing(layout, files, generation), generation.current()
    scrubbing.shards(256)
    assert (scrubbing.results.count("ok"), scrubbing.results.count("wrong")) == (59, 1)
    assert files.size(blobs[7]) is None
    assert files.quota.figures()[1] == 59
    assert generation.current() != before
    scrubbing.shards(256)
    assert len(scrubbing.results) == 60 + 59


def test_scrub_is_not_early(layout, files, generation):
    """A shard waits until it is due."""
    for i in range(60):
        put(files, b"%d" % i)
    scrubbing = Scrubbing(layout, files, generation)
    for _ in range(300):
        scrubbing.scrub.step(scrubbing.now)
    assert len(scrubbing.results) == len(list(files.walk("00")))


def test_scrub_goes_on_after_a_restart(layout, files, generation):
    """A new process goes on where the last one was, and begins a shard again that was not done."""
    for i in range(200):
        put(files, b"%d" % i)
    scrubbing = Scrubbing(layout, files, generation)
    for _ in range(8):
        scrubbing.shards(32)
        scrubbing.restart()
    assert scrubbing.results == ["ok"] * 200


def test_scrub_that_is_stopped(layout, files, generation, monkeypatch):
    """A stop ends the scrub in the middle of a large blob, which is hashed again by the next process."""
    data = os.urandom(3 << 20)
    digest = put(files, data)
    monkeypatch.setattr("mirror.maintenance.scrub._BACKGROUND_BYTES_PER_S", 1 << 20)
    scrubbing = Scrubbing(layout, files, generation)
    scrubbing.now += 1
    layout_shard = int(digest.encoded[:2], 16)
    with open(layout.scrub_cursor, "w") as file:
        file.write(f"{layout_shard} 0\n")
    timer = threading.Timer(0.2, scrubbing.scrub.stop)
    timer.start()
    scrubbing.scrub.step(scrubbing.now)
    timer.join()
    assert scrubbing.results == []
    monkeypatch.undo()
    scrubbing.restart()
    scrubbing.scrub.step(scrubbing.now)
    assert scrubbing.results == ["ok"]
    assert files.size(digest) == len(data)


@pytest.mark.parametrize("cursor", ["", "x", "1", "999 0", "3 nan", "0 99999999999999", "\0\0"])
def test_nonsense_cursor(layout, files, generation, cursor):
    """A cursor that is damaged or far ahead stops nothing: the scrub goes on within one shard's time."""
    put(files, b"content")
    with open(layout.scrub_cursor, "w") as file:
        file.write(cursor)
    scrubbing = Scrubbing(layout, files, generation)
    scrubbing.shards(260)
    assert set(scrubbing.results) == {"ok"}


def test_no_scrub(layout, files, generation):
    """With an interval of 0 there is none."""
    put(files, b"content")
    scrubbing = Scrubbing(layout, files, generation, interval=0.0)
    scrubbing.shards(300)
    assert scrubbing.results == []


def test_blob_that_goes_during_the_scrub(layout, files, generation):
    """What was evicted since the shard was listed is neither right nor wrong."""
    digest = put(files, b"content")
    scrub = Scrub(layout, files, generation, 1.0, lambda _: pytest.fail("was counted"))
    files.delete(digest)
    assert scrub.check(digest, lambda _: None)
    assert is_intact(files, digest, lambda _: None) is None


def test_pace(monkeypatch):
    """The rate holds on the average; a pause is no credit for more than a second; 0 is no limit."""
    now, slept = [100.0], []
    monkeypatch.setattr("mirror.maintenance.scrub.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mirror.maintenance.scrub.time.sleep", lambda s: (slept.append(s), now.__setitem__(0, now[0] + s)))
    pace = Pace(1000.0)
    for _ in range(20):
        pace(500)
    assert now[0] == pytest.approx(110.0, abs=0.01)
    now[0] += 1000
    started = now[0]
    for _ in range(20):
        pace(500)
    assert 9.0 - 0.01 <= now[0] - started <= 10.0
    count = len(slept)
    Pace(0)(1 << 40)
    assert len(slept) == count


async def test_scrub_of_a_mirror(hub, mirror):
    """The scrub of a running mirror drops what is wrong, which the next pull fetches again, and both are counted."""
    image = await pulled(hub, mirror, layers=[os.urandom(10_000)])
    path = mirror.blob_path(image.layers[0].digest)
    flip(path)
    scrub = mirror.services.janitor.scrub
    digest = next(file.digest for file in mirror.store.files.walk() if str(file.digest) == image.layers[0].digest)
    assert not await asyncio.to_thread(scrub.check, digest, Pace(0))
    assert not path.exists()
    assert await mirror.metric("scrubbed_blobs_total", result="wrong") == 1
    answer = await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
    assert (answer.cache, answer.sha256) == ("MISS", image.layers[0].digest)


# ---- usage


async def test_usage(hub, mirror):
    """A pull is noted for the tag and all that the image needs, once it is written down; a blob's for itself."""
    image = await pulled(hub, mirror)
    store, written = mirror.store, Usage()
    repository, tag = Repository.parse("docker.io", APP), Tag.parse("1")
    digest = next(file.digest for file in store.files.walk() if str(file.digest) == image.digest)
    layer = next(file.digest for file in store.files.walk() if str(file.digest) == image.layers[0].digest)
    when = time.time() + 100
    written.note_manifest(repository, tag, digest, when - 50)
    written.note_manifest(repository, tag, digest, when)
    written.write(store.files, store.index)
    assert {round(file.used - when, 3) for file in store.files.walk()} == {0.0, 0.02}
    ((_, _, record),) = store.index.tags.matching()
    assert record.pulled == when
    written.note_blob(layer, when + 10)
    written.note_manifest(repository, tag, digest, when + 5)
    written.write(store.files, store.index)
    assert store.files.used(layer) == pytest.approx(when + 10)
    written.write(store.files, store.index)
    assert store.files.used(digest) == pytest.approx(when + 5)


def test_usage_of_what_is_gone(files, tmp_path):
    """A use of what has been evicted since is forgotten."""
    from mirror.storage.index import Index

    index, written = Index(str(tmp_path / "index")), Usage()
    digest = Digest.of(b"gone")
    written.note_manifest(Repository.parse("docker.io", APP), digest, digest, 5.0)
    written.note_blob(digest, 5.0)
    written.write(files, index)
    assert list(files.walk()) == list(index.tags.matching()) == []
    index.close()
