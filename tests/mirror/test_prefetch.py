"""Prefetch: layers come before they are asked for, once, and never at the cost of a client."""

import asyncio
import contextlib
import json
import os
import signal

import aiohttp
import pytest

from mirror.cache.prefetch import max_prefetches
from mirror.core.digest import Digest
from tests.fakehub import OCI_MANIFEST, Corrupt, HeadWithoutLength, Rule, Status
from tests.mirror.commands import command
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB, blob_path, manifest_path
from tests.support.processes import Served
from tests.support.waiting import LIMIT, eventually

OTHER = "library/other"
LAYERS = 5
BODIES = Rule(host="cdn", method="GET", times=None)


def image(hub, tag="1", repository=APP, layers=LAYERS, size=200 * KIB, **more):
    """An image with layers that no other image has."""
    return hub.add_image(repository, tag, layers=[os.urandom(size) for _ in range(layers)], **more)


def parts(made):
    """The digests that a client asks for, in the manifest's order."""
    return [part.digest for part in (made.config, *made.layers)]


@pytest.fixture
async def start(hub, tmp_path):
    """Makes mirrors that prefetch, over one store."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(connections=64, **settings):
            downloads = {"prefetch": True, "max_upstream_connections": connections}
            under_test = MirrorUnderTest(hub, tmp_path / "store", downloads=downloads, **settings)
            return await stack.enter_async_context(under_test)

        yield make


async def results(mirror):
    """What came of the blobs so far, without what did not happen."""
    samples = await mirror.metrics()
    prefix = 'registry_mirror_prefetched_blobs_total{result="'
    return {name.removeprefix(prefix)[:-2]: int(value) for name, value in samples.items() if name.startswith(prefix) and value}


async def done(mirror, number):
    """The results, as soon as they are those of so many blobs."""
    return await eventually(lambda: results(mirror), holds=lambda found: sum(found.values()) >= number)


async def nothing(hub, mirror):
    """Whether no blob has been asked for. What begins does so before the client has its answer."""
    await mirror.idle()
    return hub.count(kind="blob") == 0 and await results(mirror) == {}


async def held_by(gate, number):
    """Wait until a gate holds so many bodies."""
    await eventually(lambda: gate.waiting >= number)


def bodies(hub, digest=None, repository=None):
    """How often the CDN was asked."""
    return hub.count("GET", host="cdn", reference=digest, repository=repository)


# ---- what is fetched


@pytest.mark.parametrize("reference", ["tag", "digest"])
async def test_layers_come_by_themselves(hub, start, reference):
    """After the GET of a manifest that was not held, everything it names is fetched once, and clients find it there."""
    mirror = await start()
    made = image(hub)
    assert (await mirror.get(manifest_path("1" if reference == "tag" else made.digest))).cache == "MISS"
    assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS}
    for digest in parts(made):
        answer = await mirror.get(blob_path(digest))
        assert (answer.cache, answer.sha256) == ("HIT", digest)
        assert bodies(hub, digest) == 1


async def test_in_the_order_of_the_manifest(hub, start):
    """One at a time, where there are two connections: config first, then the layers from the lowest."""
    mirror = await start(connections=2)
    made = image(hub)
    await mirror.get(manifest_path("1"))
    await done(mirror, 1 + LAYERS)
    assert [seen.digest for seen in hub.find("GET", host="cdn")] == parts(made)


async def test_clients_join(hub, start):
    """Clients who ask while the layers arrive share their downloads."""
    mirror = await start()
    made = image(hub)
    gate = hub.gate(BODIES)
    await mirror.get(manifest_path("1"))
    await held_by(gate, 1 + LAYERS)
    pulls = [asyncio.create_task(mirror.get(blob_path(digest))) for digest in parts(made)]
    await eventually(lambda: mirror.metric("download_readers"), holds=lambda seen: seen >= 2 * (1 + LAYERS))
    gate.release()
    for digest, answer in zip(parts(made), await asyncio.gather(*pulls), strict=True):
        assert (answer.cache, answer.sha256, bodies(hub, digest)) == ("JOINED", digest, 1)


async def test_client_that_is_faster(hub, start):
    """What a client has begun by itself is passed over at once: it takes no turn, and is not fetched twice."""
    mirror = await start(connections=2)
    made = image(hub, layers=2)
    config, first, second = parts(made)
    before, under_way = (hub.gate(Rule(host="cdn", reference=digest)) for digest in (config, first))
    await mirror.get(manifest_path("1"))
    await held_by(before, 1)
    # The only other connection.
    pull = asyncio.create_task(mirror.get(blob_path(first)))
    await held_by(under_way, 1)
    before.release()
    await eventually(lambda: mirror.holds(second))
    assert await done(mirror, 3) == {"fetched": 2, "needless": 1}
    under_way.release()
    answer = await pull
    assert (answer.cache, answer.sha256, bodies(hub, first)) == ("MISS", first, 1)


async def test_shared_layers_are_not_fetched_again(hub, start):
    """Of an image that shares layers with one that is held only the rest is fetched, and a layer that comes twice once."""
    mirror = await start()
    old = image(hub)
    await mirror.get(manifest_path("1"))
    await done(mirror, 1 + LAYERS)
    hub.reset_counters()
    new = hub.add_image(APP, "2", layers=[*old.layers, b"new", b"new"])
    await mirror.get(manifest_path("2"))
    found = await done(mirror, 2 * (1 + LAYERS) + 1)
    assert found == {"fetched": 1 + LAYERS + 2, "needless": LAYERS}
    assert sorted(seen.digest for seen in hub.find("GET", host="cdn")) == sorted({new.config.digest, new.layers[-1].digest})


async def test_foreign_layers_are_left_alone(hub, start):
    """A layer that lives elsewhere is none of the registry's, which is not asked for it."""
    mirror = await start()
    made = image(hub, layers=1)
    manifest = json.loads(made.raw)
    foreign = {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": f"sha256:{'7' * 64}", "size": 5}
    manifest["layers"].insert(0, foreign)
    hub.add_manifest(APP, json.dumps(manifest).encode(), OCI_MANIFEST, "foreign")
    await mirror.get(manifest_path("foreign"))
    assert await done(mirror, 2) == {"fetched": 2}
    await mirror.idle()
    assert hub.count(reference=foreign["digest"]) == 0


# ---- what begins it


async def test_index_begins_nothing(hub, start):
    """The GET of an index fetches nothing; that of one of its manifests fetches this platform's blobs only."""
    mirror = await start()
    made = image(hub, platforms=["linux/amd64", "linux/arm64"])
    await mirror.get(manifest_path("1"))
    assert await nothing(hub, mirror)
    chosen, other = made.children.values()
    await mirror.get(manifest_path(chosen.digest))
    assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS}
    assert bodies(hub, other.config.digest) == 0


async def test_head_begins_nothing(hub, start):
    """A HEAD that is answered by a HEAD, and the GET that follows, as dockerd asks."""
    mirror = await start()
    made = image(hub)
    assert (await mirror.head(manifest_path("1"))).headers["Docker-Content-Digest"] == made.digest
    assert await nothing(hub, mirror)
    assert (await mirror.get(manifest_path(made.digest))).cache == "MISS"
    assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS}


@pytest.mark.parametrize("then", ["tag", "digest"])
@pytest.mark.parametrize("why", ["too little told", "moved"])
async def test_head_that_fetches_the_manifest(hub, start, then, why):
    """Where a HEAD makes the mirror fetch the manifest, blobs wait for the GET, however many HEADs come before; it is a HIT."""
    mirror = await start(tags={"ttl": "0s" if why == "moved" else "1h"})
    if why == "moved":
        image(hub, layers=1)
        await mirror.get(manifest_path("1"))
        await done(mirror, 2)
    else:
        hub.script(Rule(kind="manifest", method="HEAD", times=None), HeadWithoutLength())
    before = await results(mirror)
    made = image(hub)
    hub.reset_counters()
    for _ in range(3):
        assert (await mirror.head(manifest_path("1"))).headers["Docker-Content-Digest"] == made.digest
    await mirror.idle()
    assert (hub.count("GET", "manifest", status=200), hub.count(kind="blob"), await results(mirror)) == (1, 0, before)
    assert (await mirror.get(manifest_path("1" if then == "tag" else made.digest))).cache in ("HIT", "REVALIDATED")
    found = await done(mirror, sum(before.values()) + 1 + LAYERS)
    assert found["fetched"] == before.get("fetched", 0) + 1 + LAYERS
    assert hub.count("GET", "manifest", status=200) == 1


async def test_hit_begins_nothing(hub, start):
    """What was held before this process came is not fetched ahead: most likely it is held whole, and the client will tell."""
    made = image(hub)
    mirror = await start()
    await mirror.reload(downloads={"prefetch": False})
    await mirror.get(manifest_path("1"))
    await mirror.reload(downloads={"prefetch": True})
    for reference in ("1", made.digest):
        assert (await mirror.get(manifest_path(reference))).cache == "HIT"
    assert await nothing(hub, mirror)


async def test_option(hub, start):
    """Off by the option, and by a reload at once."""
    mirror = await start()
    for number, wanted in enumerate((False, True, False)):
        await mirror.reload(downloads={"prefetch": wanted})
        made = image(hub, tag=str(number))
        hub.reset_counters()
        await mirror.get(manifest_path(str(number)))
        if wanted:
            assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS}
        await mirror.idle()
        assert [mirror.holds(digest) for digest in parts(made)] == [wanted] * (1 + LAYERS)


# ---- within bounds


@pytest.mark.parametrize(("connections", "prefetching"), [(1, 0), (2, 1), (3, 1), (7, 1), (8, 2), (64, 16), (10_000, 2500)])
def test_share(connections, prefetching):
    """A quarter, at least one, and never the last connection."""
    assert max_prefetches(connections) == prefetching


async def test_clients_find_connections(hub, start, monkeypatch):
    """Never more than the share is under way; meanwhile a client's own misses get through, of this image and of another."""
    mirror = await start(connections=8)
    downloads, most = mirror.downloads, 0
    begin = downloads.start

    def watched(*args, **kwargs):
        nonlocal most
        begun = begin(*args, **kwargs)
        most = max(most, len([download for download in downloads if str(download.digest) in ahead]))
        return begun

    monkeypatch.setattr(downloads, "start", watched)
    made, other = image(hub, layers=12), image(hub, repository=OTHER, layers=1)
    *ahead, last = parts(made)
    gate = hub.gate(Rule(host="cdn", repository=APP, times=None))
    await mirror.get(manifest_path("1"))
    await held_by(gate, 2)
    assert (await mirror.get(blob_path(other.layers[0].digest, OTHER))).cache == "MISS"
    assert (bodies(hub, repository=APP), most) == (2, 2)
    pull = asyncio.create_task(mirror.get(blob_path(last)))
    await held_by(gate, 3)
    gate.release()
    assert (await pull).sha256 == last
    found = await done(mirror, 13)
    assert found == {"fetched": 12, "needless": 1}
    assert most == 2
    assert {bodies(hub, digest) for digest in parts(made)} == {1}


async def test_no_image_takes_it_all(hub, start):
    """Of one image six blobs are under way at most; those of another need not wait for them."""
    mirror = await start()
    large, other = image(hub, layers=12), image(hub, repository=OTHER)
    gate = hub.gate(Rule(host="cdn", repository=APP, times=None))
    await mirror.get(manifest_path("1"))
    await held_by(gate, 6)
    await mirror.get(manifest_path("1", OTHER))
    assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS}
    assert all(mirror.holds(digest) for digest in parts(other))
    assert bodies(hub, repository=APP) == 6
    gate.release()
    assert await done(mirror, 13 + 1 + LAYERS) == {"fetched": 13 + 1 + LAYERS}
    assert all(mirror.holds(digest) for digest in parts(large))


async def test_last_connection_is_for_clients(hub, start):
    """Where there is one connection, nothing is fetched ahead."""
    mirror = await start(connections=1)
    image(hub)
    await mirror.get(manifest_path("1"))
    assert await nothing(hub, mirror)


async def test_most_that_wait(hub, start, monkeypatch):
    """Beyond so many that wait, blobs are left to the clients."""
    monkeypatch.setattr("mirror.cache.prefetch._MAX_WAITING", 4)
    mirror = await start()
    image(hub, layers=9)
    await mirror.get(manifest_path("1"))
    assert await done(mirror, 10) == {"fetched": 4, "dropped": 6}


async def test_most_manifests_that_no_client_has_taken(hub, start, monkeypatch):
    """Only so many are kept in mind; those that were fetched first are forgotten first."""
    monkeypatch.setattr("mirror.cache.prefetch._MAX_PENDING", 2)
    hub.script(Rule(kind="manifest", method="HEAD", times=None), HeadWithoutLength())
    mirror = await start()
    first, *_ = images = [image(hub, tag) for tag in "123"]
    for tag in "123":
        await mirror.head(manifest_path(tag))
    for tag in "123":
        assert (await mirror.get(manifest_path(tag))).cache == "HIT"
    assert await done(mirror, 2 * (1 + LAYERS)) == {"fetched": 2 * (1 + LAYERS)}
    assert [made for made in images if not mirror.holds(made.config.digest)] == [first]


async def test_limited_upstream_is_left_alone(hub, start):
    """With no pull left nothing is fetched that nobody has asked for."""
    mirror = await start()
    made = image(hub)
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 1
    await mirror.get(manifest_path("1"))
    assert await done(mirror, 1 + LAYERS) == {"dropped": 1 + LAYERS}
    assert bodies(hub) == 0
    for digest in parts(made):
        assert (await mirror.get(blob_path(digest))).sha256 == digest


async def test_image_that_never_fits(hub, start, blobs_only):
    """An image larger than the store is left to the client: its first layers would have to go for its last."""
    mirror = await start(storage={"max_size": str(MIB)})
    made = image(hub, layers=6)
    await mirror.get(manifest_path("1"))
    assert await done(mirror, 7) == {"dropped": 7}
    assert bodies(hub) == 0
    for digest in parts(made):
        assert (await mirror.get(blob_path(digest))).sha256 == digest


async def test_no_room_just_now(hub, start, monkeypatch, blobs_only):
    """The first blob that finds no room ends it for its image; the client gets everything all the same."""
    monkeypatch.setattr("mirror.maintenance.janitor.Janitor.make_room", _in_use)
    mirror = await start(connections=4, storage={"max_size": str(4 * MIB)})
    large = hub.add_synthetic_blob(OTHER, 3 * MIB + MIB // 2)
    gate = hub.gate(Rule(host="cdn", repository=OTHER), after=2 * MIB)
    taking = asyncio.create_task(mirror.get(blob_path(large.digest, OTHER)))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    made = image(hub, layers=4, size=900 * KIB)
    await mirror.get(manifest_path("1"))
    assert await done(mirror, 5) == {"fetched": 1, "failed": 1, "dropped": 3}
    # Not another time, past the store, for nobody.
    assert bodies(hub, repository=APP) == 2
    for digest in parts(made):
        assert (await mirror.get(blob_path(digest))).sha256 == digest
    gate.release()
    assert (await taking).sha256 == large.digest


async def _in_use(janitor, size, owner):
    """Nothing can go."""


# ---- when things go wrong


async def test_failing_blobs(hub, start, quiet, monkeypatch):
    """Blobs that upstream cannot deliver fail quietly; the others come, and clients get the true answer for each."""
    monkeypatch.setattr("mirror.download.fetcher.backoff", lambda *_, **__: 0.0)
    mirror = await start()
    made = image(hub)
    config, *right, gone, wrong = parts(made)
    hub.script(Rule(host="cdn", reference=wrong, times=None), Corrupt(at=1000))
    hub.script(Rule(kind="blob", reference=gone, times=None), Status(404))
    answer = await mirror.get(manifest_path("1"))
    assert (answer.status, answer.body) == (200, made.raw)
    assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS - 2, "failed": 2}
    for digest in (config, *right):
        assert (await mirror.get(blob_path(digest))).cache == "HIT"
    assert not mirror.holds(wrong)
    assert (await mirror.get(blob_path(gone))).status == 404
    with pytest.raises(aiohttp.ClientPayloadError):
        await mirror.get(blob_path(wrong))
    quiet()


async def test_upstream_fails(hub, start, quiet, monkeypatch):
    """An upstream that answers no blob any more costs the mirror nothing but its tries, and clients a quick answer."""
    monkeypatch.setattr("mirror.download.fetcher.backoff", lambda *_, **__: 0.0)
    mirror = await start()
    made = image(hub, layers=40)
    failing = hub.script(Rule(kind="blob", host="registry", times=None), Status(500))
    assert (await mirror.get(manifest_path("1"))).body == made.raw
    found = await done(mirror, 41)
    assert found["failed"] >= 1
    assert found["dropped"] >= 1
    failing.remove()
    await mirror.recovered()
    for digest in parts(made):
        # What has failed twice is not tried again for a moment.
        answer = await eventually(lambda digest=digest: mirror.get(blob_path(digest)), holds=lambda answer: answer.status != 503)
        assert answer.sha256 == digest
    quiet()


async def test_upstream_is_told_for_whom(hub, start):
    """Requests for blobs carry the name of the client's request for the manifest, and the mirrors that it has come through."""
    mirror = await start(connections=2)
    images = {tag: image(hub, tag) for tag in "12"}
    for tag in images:
        await mirror.get(manifest_path(tag), headers={"X-Request-Id": f"request-{tag}", "Via": f"1.1 registry-mirror-{tag}"})
    await done(mirror, 2 * (1 + LAYERS))
    asked = hub.find("GET", "blob", host="registry")
    assert {seen.headers["X-Request-Id"] for seen in asked} == {"request-1", "request-2"}
    for seen in asked:
        number = seen.headers["X-Request-Id"][-1]
        assert seen.headers["Via"].startswith(f"1.1 registry-mirror-{number}, ")
        assert seen.reference in parts(images[number])


@pytest.mark.parametrize("no", ["not there", "denied"])
async def test_rights_stay(hub, tmp_path, pulls_left, no):
    """A blob that is held by way of one private repository is not given to another by fetching it ahead."""
    one, two = "team/one", "team/two"
    (tmp_path / "password").write_text("secret\n")
    hub.users = {"robot": "secret"}
    entry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "username": "robot",
        "password_file": str(tmp_path / "password"),
    }
    settings = {"registries": {"docker.io": entry}, "downloads": {"prefetch": True}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        await pulls_left(mirror, 50)
        made = image(hub, repository=one)
        await mirror.get(manifest_path("1", one))
        assert await done(mirror, 1 + LAYERS) == {"fetched": 1 + LAYERS}
        secret = made.layers[0].digest
        hub.add_manifest(two, made.raw, made.media_type, "1")
        for part in (made.config, *made.layers[1:]):
            hub.add_blob(two, part.data)
        if no == "denied":
            hub.script(Rule(kind="blob", repository=two, reference=secret, times=None), Status(403))
        hub.reset_counters()
        await mirror.get(manifest_path(made.digest, one))
        await mirror.get(manifest_path("1", two))
        # The manifest is on disk: nothing is fetched ahead, whoever it was fetched for.
        assert (await mirror.get(blob_path(secret, two))).status == 404
        await _forget(mirror, made.digest)
        await mirror.get(manifest_path("1", two))
        found = await done(mirror, 2 * (1 + LAYERS))
        assert found == {"fetched": 1 + LAYERS, "needless": LAYERS, "failed": 1}
        assert (await mirror.get(blob_path(secret, two))).status == 404
        assert (await mirror.get(blob_path(secret, one))).cache == "HIT"
        assert (await mirror.get(blob_path(made.layers[1].digest, two))).cache == "HIT"
        assert bodies(hub) == 0


async def _forget(mirror, digest):
    """Take a manifest away, as eviction does."""
    mirror.store.files.delete(Digest.parse(digest))
    mirror.store.generation.change()


# ---- when the mirror stops


async def test_stop_in_the_middle(hub, tmp_path, quiet):
    """A mirror that stops begins nothing more and ends soon; what had arrived is not fetched again."""
    made = image(hub, layers=12, size=2 * MIB + MIB // 2)
    gate = hub.gate(Rule(host="cdn", times=None), after=MIB + MIB // 2)
    settings = {"downloads": {"prefetch": True, "max_upstream_connections": 8}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        await mirror.get(manifest_path("1"))
        # The config is smaller than that and has gone through.
        await held_by(gate, 2)
        await eventually(lambda: sum(download.received for download in mirror.downloads) >= 2 * MIB)
        mirror.stop()
        await mirror.stopped()
    assert bodies(hub) == 3
    assert mirror.partials()
    gate.release()
    hub.reset_counters()
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        assert (await mirror.get(manifest_path("1"))).cache == "HIT"
        for digest in parts(made):
            assert (await mirror.get(blob_path(digest))).sha256 == digest
        assert hub.bytes_sent() < 12 * (2 * MIB + MIB // 2) - MIB
    quiet()


async def test_reload_in_the_middle(hub, start):
    """A reload lets what has been begun come to its end, and leaves the rest to the clients."""
    mirror = await start(connections=2)
    made = image(hub)
    config, *layers = parts(made)
    gate = hub.gate(Rule(host="cdn", reference=config))
    await mirror.get(manifest_path("1"))
    await held_by(gate, 1)
    await mirror.reload(downloads={"prefetch": False})
    gate.release()
    await mirror.idle()
    assert mirror.holds(config)
    assert (await results(mirror), bodies(hub)) == ({"dropped": LAYERS, "fetched": 1}, 1)
    for digest in layers:
        assert (await mirror.get(blob_path(digest))).cache == "MISS"


@pytest.mark.parametrize("after", [0, 100 * KIB, 200 * KIB - 1])
async def test_killed_in_the_middle(hub, tmp_path, after):
    """kill -9 while layers come ahead of the client: everything is right afterwards, and nothing is left behind."""
    made = image(hub, layers=8)
    gate = hub.gate(BODIES, after)
    async with Served(hub, tmp_path) as mirror:
        assert await mirror.get(manifest_path("1")) == (200, "MISS", made.raw)
        await held_by(gate, 6)
        mirror.signal(signal.SIGKILL)
        await mirror.ended()
    assert len(_unfinished(mirror)) >= 6
    gate.release()
    async with Served(hub, tmp_path) as mirror:
        assert await mirror.get(manifest_path("1")) == (200, "HIT", made.raw)
        for part in (made.config, *made.layers):
            assert (await mirror.get(blob_path(part.digest)))[::2] == (200, part.data)
        # The last bytes of a blob may be read a moment before it is held.
        await eventually(lambda: not _unfinished(mirror))
        status, out, complaint = await command("verify", "--config", str(mirror.file), "--json", directory=tmp_path)
        assert (status, json.loads(out)) == (0, {"checked": 10, "wrong": 0}), complaint
        mirror.signal()
        assert await mirror.ended() == 0
    assert "Traceback" not in mirror.log


def _unfinished(mirror):
    """Blobs in the making; the map of one that was just becoming held when the mirror was killed is cleared an hour later."""
    return [path for path in (mirror.store / "partial").rglob("*") if path.is_file() and path.suffix != ".map"]
