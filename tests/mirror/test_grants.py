"""Who may read what: a blob is served for the repository through which upstream grants it."""

import asyncio
import shutil
import threading

import pytest

from mirror.core.digest import Digest
from mirror.download.ingest import Ingest
from mirror.maintenance import leftovers
from mirror.storage.table import Table
from tests.fakehub import Html, NoHeaders, Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.waiting import LIMIT, eventually

ONE, OTHER = "library/one", "library/other"


@pytest.fixture
async def private(hub, tmp_path):
    """A mirror that uses the registry with credentials: each repository's rights are its own."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    hub.users = {"robot": "secret"}
    entry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "username": "robot",
        "password_file": str(password),
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
        yield mirror


async def test_no_of_another_repository(hub, mirror, all_in):
    """Who joins a download that another repository began gets the blob all the same when that one is refused it."""
    hub.add_image(ONE, "1")
    digest = hub.add_blob(OTHER, b"content")
    held = NoHeaders()
    hub.script(Rule(kind="blob", repository=ONE, host="registry"), held)
    refused = asyncio.create_task(mirror.get(f"/v2/{ONE}/blobs/{digest}"))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    granted = asyncio.create_task(mirror.get(f"/v2/{OTHER}/blobs/{digest}"))
    await all_in(2)
    async with asyncio.timeout(LIMIT):
        while mirror.download(digest).readers < 2:
            await asyncio.sleep(0)
    held.release()
    answer = await granted
    assert (answer.status, answer.body) == (200, b"content")
    assert (await refused).status == 404
    assert (await mirror.get(f"/v2/{OTHER}/blobs/{digest}")).status == 200


async def is_refused_while_it_is_stored(hub, mirror, monkeypatch):
    image = hub.add_image(ONE, "1")
    put, writing, go_on = mirror.store.files.put, threading.Event(), threading.Event()

    def slow(*args):
        writing.set()
        assert go_on.wait(LIMIT)
        put(*args)

    monkeypatch.setattr(mirror.store.files, "put", slow)
    path = f"/v2/{ONE}/manifests/{image.digest}"
    async with MirrorUnderTest(hub, mirror.store_path, **mirror.settings) as other:
        try:
            fetching = asyncio.create_task(mirror.get(f"/v2/{ONE}/manifests/1"))
            await asyncio.to_thread(writing.wait, LIMIT)
            hub.delete_manifest(ONE, image.digest)
            assert (await other.get(path)).status == 404
        finally:
            go_on.set()
        assert (await fetching).body == image.raw
        await mirror.idle()
        for worker in (mirror, other):
            assert (await worker.get(path)).status == 404


async def test_refused_while_it_is_stored(hub, mirror, monkeypatch):
    """A manifest that upstream refuses to another worker, while this one waits for the disk, stays refused to all."""
    await is_refused_while_it_is_stored(hub, mirror, monkeypatch)


async def test_refused_to_an_account_while_it_is_stored(hub, private, monkeypatch):
    """So it is in a registry with an account."""
    await is_refused_while_it_is_stored(hub, private, monkeypatch)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
@pytest.mark.parametrize("name", [OTHER, "library/invented", "team/one"])
async def test_not_through_another_name(hub, mirror, kind, method, name):
    """Without credentials, too, what came through one repository is not served through one that does not have it."""
    image = hub.add_image(ONE, "1")
    hub.add_image(OTHER, "1", layers=[b"else"])
    digest = image.digest if kind == "manifests" else image.layers[0].digest
    assert (await mirror.get(f"/v2/{ONE}/{kind}/{digest}")).status == 200
    await mirror.idle()
    for _ in range(2):
        answer = await mirror.get(f"/v2/{name}/{kind}/{digest}", method)
        assert (answer.status, answer.cache) == (404, None)
    assert (await mirror.get(f"/v2/{ONE}/{kind}/{digest}", method)).cache == "HIT"


async def test_shared_layers_cost_nothing(hub, mirror):
    """A layer of which a manifest of the repository tells costs no request there once it is held, not even after a restart."""
    images = [hub.add_image(name, "1", layers=[b"base", name.encode()]) for name in (ONE, OTHER, "library/third")]
    base = images[0].layers[0].digest
    for name in (ONE, OTHER, "library/third"):
        await mirror.get(f"/v2/{name}/manifests/1")
    assert (await mirror.get(f"/v2/{ONE}/blobs/{base}")).cache == "MISS"
    await mirror.idle()
    hub.reset_counters()
    for method in ("HEAD", "GET"):
        assert (await mirror.get(f"/v2/{OTHER}/blobs/{base}", method)).cache == "HIT"
    async with MirrorUnderTest(hub, mirror.store_path) as again:
        assert (await again.get(f"/v2/library/third/blobs/{base}")).body == b"base"
    assert [(seen.method, seen.path) for seen in hub.find()] == []


async def test_shared_layers_that_are_arriving(hub, mirror, all_in):
    """Who has a manifest that names a layer joins its download without a question, whichever repository began it."""
    layer = hub.add_synthetic_blob(ONE, 500_000)
    for name in (ONE, OTHER):
        hub.add_image(name, "1", layers=[layer])
        await mirror.get(f"/v2/{name}/manifests/1")
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=200_000)
    first = asyncio.create_task(mirror.get(f"/v2/{ONE}/blobs/{layer.digest}"))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    second = asyncio.create_task(mirror.get(f"/v2/{OTHER}/blobs/{layer.digest}"))
    await all_in(2)
    gate.release()
    assert (await first).sha256 == (await second).sha256 == layer.digest
    assert (await second).cache in ("JOINED", "HIT")
    assert hub.count("HEAD", "blob") == 0
    assert hub.count(host="cdn", kind="blob") == 1


async def test_platforms_of_an_index_cost_nothing(hub, mirror):
    """A manifest that an index of the repository names is served there once it is held, without a question."""
    for name in (ONE, OTHER):
        image = hub.add_image(name, "1", layers=[b"same"], platforms=["linux/amd64"])
    child = image.children["linux/amd64"]
    hub.add_manifest(ONE, child.raw, child.media_type)
    await mirror.get(f"/v2/{ONE}/manifests/{child.digest}")
    await mirror.get(f"/v2/{OTHER}/manifests/1")
    hub.reset_counters()
    answer = await mirror.get(f"/v2/{OTHER}/manifests/{child.digest}")
    assert (answer.cache, answer.body, hub.find()) == ("HIT", child.raw, [])


async def test_a_manifests_word_is_not_enough_with_credentials(hub, private):
    """With credentials, a HEAD is asked as well where only a manifest names a layer, once."""
    image = hub.add_image(ONE, "1", layers=[b"base"])
    hub.add_image(OTHER, "1", layers=[b"base"])
    base = image.layers[0].digest
    for name in (ONE, OTHER):
        await private.get(f"/v2/{name}/manifests/1")
    await private.get(f"/v2/{ONE}/blobs/{base}")
    await private.idle()
    hub.reset_counters()
    for _ in range(2):
        assert (await private.get(f"/v2/{OTHER}/blobs/{base}")).cache == "HIT"
    assert (hub.count("HEAD", "blob", status=200), hub.count("GET", "blob")) == (1, 0)
    hub.delete_blob("library/other", base)
    async with MirrorUnderTest(hub, private.store_path, **private.settings) as again:
        assert (await again.get(f"/v2/{OTHER}/blobs/{base}")).cache == "HIT"


async def test_unknown_right_in_an_outage(hub, mirror):
    """Where a right is not known and upstream cannot be asked, the answer is 503 and not remembered, whatever the failure."""
    image = hub.add_image(ONE, "1", layers=[b"base"])
    hub.add_image(OTHER, "1", layers=[b"base"])
    hub.add_manifest(OTHER, image.raw, image.media_type)
    paths = {f"blobs/{image.layers[0].digest}": b"base", f"manifests/{image.digest}": image.raw}
    for path in paths:
        await mirror.get(f"/v2/{ONE}/{path}")
    await mirror.idle()
    for path, body in paths.items():
        outage = hub.script(Rule(method="HEAD", host="registry", times=None), Status(500))
        for _ in range(2):
            assert (await mirror.get(f"/v2/{OTHER}/{path}")).status == 503
        assert (await mirror.get(f"/v2/{ONE}/{path}")).cache == "HIT"
        outage.remove()
        answer = await mirror.get(f"/v2/{OTHER}/{path}")
        assert (answer.status, answer.cache, answer.body) == (200, "HIT", body)


async def test_lost_index_and_upstream_down(hub, tmp_path):
    """Without index and upstream nothing is served; when upstream is back, each right is asked for once and recorded."""
    image = hub.add_image(ONE, "1", layers=[b"base"])
    paths = [f"/v2/{ONE}/manifests/{image.digest}", f"/v2/{ONE}/blobs/{image.layers[0].digest}"]
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for path in paths:
            await mirror.get(path)
        await mirror.idle()
    shutil.rmtree(tmp_path / "store" / "index")
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        await hub.stop()
        for path in paths:
            assert (await mirror.get(path)).status == 503
        await hub.start()
        await mirror.recovered()
        hub.reset_counters()
        for _ in range(2):
            for path in paths:
                assert (await mirror.get(path)).cache == "HIT"
        assert hub.count("GET", "manifest") == hub.count("GET", "blob") == 0
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        hub.reset_counters()
        for path in paths:
            assert (await mirror.get(path)).cache == "HIT"
        assert hub.count() == 0


async def test_no_head_no_grant(hub, mirror):
    """An upstream that does not answer HEAD grants nothing by that: a manifest is fetched where it is asked for."""
    image = hub.add_image(ONE, "1")
    hub.add_image(OTHER, "1", layers=[b"else"])
    await mirror.get(f"/v2/{ONE}/manifests/{image.digest}")
    hub.script(Rule(kind="manifest", method="HEAD", times=None), Status(405))
    assert (await mirror.get(f"/v2/{OTHER}/manifests/{image.digest}")).status == 404
    hub.add_manifest("library/third", image.raw, image.media_type)
    assert (await mirror.get(f"/v2/library/third/manifests/{image.digest}")).body == image.raw


@pytest.mark.parametrize("code", [403, 404])
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_a_grant_ends_with_a_no(hub, mirror, kind, code):
    """What upstream refuses a repository is not served there because it was granted before, and another one has it."""
    images = [hub.add_image(name, "1", layers=[b"same"]) for name in (ONE, OTHER)]
    hub.add_manifest(OTHER, images[0].raw, images[0].media_type)
    digest = images[0].digest if kind == "manifests" else images[0].layers[0].digest
    assert (await mirror.get(f"/v2/{ONE}/{kind}/{digest}")).status == 200
    await mirror.idle()
    mirror.store.files.delete(Digest.parse(digest))
    mirror.store.generation.change()
    hub.script(Rule(kind=kind.removesuffix("s"), repository=ONE, times=None), Status(code))
    assert (await mirror.get(f"/v2/{ONE}/{kind}/{digest}")).status == 404
    assert (await mirror.get(f"/v2/{OTHER}/{kind}/{digest}")).status == 200
    await mirror.idle()
    for method in ("HEAD", "GET"):
        assert (await mirror.get(f"/v2/{ONE}/{kind}/{digest}", method)).status == 404
    async with MirrorUnderTest(hub, mirror.store_path, tags={"not_found_ttl": "0s"}) as again:
        assert (await again.get(f"/v2/{ONE}/{kind}/{digest}")).status == 404
        assert (await again.get(f"/v2/{OTHER}/{kind}/{digest}")).cache == "HIT"


async def test_many_askers_of_a_held_manifest_ask_once(hub, mirror, all_in):
    """Many clients of another repository ask upstream once whether it has a held manifest."""
    image = hub.add_image(ONE, "1")
    hub.add_manifest(OTHER, image.raw, image.media_type)
    await mirror.get(f"/v2/{ONE}/manifests/{image.digest}")
    held = NoHeaders()
    hub.script(Rule(method="HEAD", kind="manifest", repository=OTHER), held)
    asking = [asyncio.create_task(mirror.get(f"/v2/{OTHER}/manifests/{image.digest}")) for _ in range(10)]
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    await all_in(10)
    held.release()
    assert {answer.body for answer in await asyncio.gather(*asking)} == {image.raw}
    assert hub.count("HEAD", "manifest", repository=OTHER, status=200) == 1
    assert hub.count("GET", "manifest", status=200) == 1


@pytest.mark.parametrize("granted", [False, True])
async def test_fetched_by_another_worker_meanwhile(hub, mirror, monkeypatch, granted):
    """What another worker fetches between this one's look and its download needs a grant here, and is none by itself."""
    digest = hub.add_blob(ONE, b"content")
    hub.add_image(OTHER, "1", layers=[b"content" if granted else b"else"])
    path = f"/v2/{OTHER}/blobs/{digest}"
    async with MirrorUnderTest(hub, mirror.store_path) as worker:
        looked, go_on = asyncio.Event(), asyncio.Event()
        run = Ingest.run

        async def held_back(ingest):
            # The other worker's ingest, which comes later, is not held.
            if not looked.is_set():
                looked.set()
                await go_on.wait()
            return await run(ingest)

        monkeypatch.setattr(Ingest, "run", held_back)
        asking = asyncio.create_task(worker.get(path))
        await asyncio.wait_for(looked.wait(), LIMIT)
        assert (await mirror.get(f"/v2/{ONE}/blobs/{digest}")).body == b"content"
        await mirror.idle()
        go_on.set()
        answer = await asking
        assert (answer.status, b"content" in answer.body) == ((200, True) if granted else (404, False))
        assert hub.count("GET", "blob", repository=OTHER) == 0
        for one in (worker, mirror):
            assert (await one.get(path)).status == (200 if granted else 404)


async def test_committed_by_another_worker_between_two_looks(hub, mirror, monkeypatch):
    """A file that appears after this worker has found nothing that could be served is not served without a grant either."""
    digest = hub.add_blob(ONE, b"content")
    hub.add_image(OTHER, "1", layers=[b"else"])
    async with MirrorUnderTest(hub, mirror.store_path) as worker:
        assert (await mirror.get(f"/v2/{ONE}/blobs/{digest}")).body == b"content"
        await mirror.idle()
        # The first look of all comes a moment before the other worker's rename, the second one after it.
        looks, size = [], worker.store.files.size

        def late(wanted):
            looks.append(wanted)
            return None if len(looks) == 1 else size(wanted)

        monkeypatch.setattr(worker.store.files, "size", late)
        assert (await worker.get(f"/v2/{OTHER}/blobs/{digest}")).status == 404
        assert looks


async def test_grant_costs_one_head(hub, private):
    """With credentials, a repository that asks for a known blob is checked by one HEAD, and nothing is fetched twice."""
    for repository in (ONE, OTHER):
        digest = hub.add_blob(repository, b"content")
    await private.get(f"/v2/{ONE}/blobs/{digest}")
    await private.idle()
    hub.reset_counters()
    for _ in range(2):
        answer = await private.get(f"/v2/{OTHER}/blobs/{digest}")
        assert (answer.status, answer.cache, answer.body) == (200, "HIT", b"content")
    assert hub.count("GET", "blob") == 0
    assert hub.count("HEAD", "blob", repository=OTHER, status=200) == 1


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_grant_no_content(hub, private, kind, method):
    """With credentials, what is held by way of one repository is not served to another that upstream refuses."""
    image = hub.add_image(ONE, "1")
    hub.add_image(OTHER, "1", layers=[b"else"])
    digest = image.digest if kind == "manifests" else image.layers[0].digest
    assert (await private.get(f"/v2/{ONE}/{kind}/{digest}")).status == 200
    await private.idle()
    for _ in range(2):
        answer = await private.get(f"/v2/{OTHER}/{kind}/{digest}", method)
        assert answer.status == 404
    assert (await private.get(f"/v2/{ONE}/{kind}/{digest}")).cache == "HIT"


async def test_no_grant_in_an_outage(hub, private):
    """With credentials and upstream down, a blob is served for the repository that was granted it, and for no other."""
    digest = hub.add_blob(ONE, b"content")
    hub.add_image(OTHER, "1")
    await private.get(f"/v2/{ONE}/blobs/{digest}")
    await private.idle()
    await hub.stop()
    assert (await private.get(f"/v2/{ONE}/blobs/{digest}")).cache == "HIT"
    assert (await private.get(f"/v2/{OTHER}/blobs/{digest}")).status == 503


@pytest.fixture
async def former(hub, tmp_path):
    """A layer, and the path of a store that an earlier version has filled: rights were kept for a whole registry."""
    image = hub.add_image(ONE, "1", layers=[b"base"])
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for path in ("manifests/1", f"blobs/{image.layers[0].digest}"):
            await mirror.get(f"/v2/{ONE}/{path}")
        await mirror.idle()
    shutil.rmtree(tmp_path / "store" / "index" / "parts")
    grants = Table(str(tmp_path / "store" / "index" / "grants"))
    kept = [key for key in grants.keys() if "|docker.io|" in key]  # noqa: SIM118 - no mapping
    assert len(kept) == 2
    grants.delete_many(set(grants.keys()) - set(kept))
    grants.close()
    return image.layers[0].digest, tmp_path / "store"


async def test_store_of_an_earlier_version(hub, former):
    """A right that is not recorded, and for which no manifest speaks, is asked for by HEAD, once."""
    layer, store = former
    for table in ("tags", "manifests"):
        shutil.rmtree(store / "index" / table)
    hub.reset_counters()
    for _ in range(2):
        async with MirrorUnderTest(hub, store) as mirror:
            assert (await mirror.get(f"/v2/{ONE}/blobs/{layer}")).cache == "HIT"
    assert (hub.count("HEAD", "blob", status=200), hub.count("GET", "blob")) == (1, 0)


async def test_store_of_an_earlier_version_in_an_outage(hub, former):
    """What the held manifests name is recorded after the start, so that they speak for their layers; no question is needed."""
    layer, store = former
    async with MirrorUnderTest(hub, store, tags={"ttl": "1h"}) as mirror:
        await hub.stop()
        await eventually(lambda: mirror.store.index.parts.is_complete, "the parts of all manifests")
        for path in (f"blobs/{layer}", "manifests/1"):
            assert (await mirror.get(f"/v2/{ONE}/{path}")).cache == "HIT"


async def test_a_manifest_that_is_read_speaks_for_its_layers(hub, former, monkeypatch):
    """Before that, what a manifest names is recorded when it is served."""
    layer, store = former
    monkeypatch.setattr(leftovers, "record_parts", lambda *_: None)
    async with MirrorUnderTest(hub, store, tags={"ttl": "1h"}) as mirror:
        await hub.stop()
        assert (await mirror.get(f"/v2/{ONE}/blobs/{layer}")).status == 503
        assert (await mirror.get(f"/v2/{ONE}/manifests/1")).cache == "HIT"
        assert (await mirror.get(f"/v2/{ONE}/blobs/{layer}")).cache == "HIT"


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_a_page_grants_nothing(hub, mirror, kind):
    """A portal that answers everything with its page and 200 grants nothing."""
    image = hub.add_image(ONE, "1")
    hub.add_image(OTHER, "1", layers=[b"else"])
    digest = image.digest if kind == "manifests" else image.layers[0].digest
    assert (await mirror.get(f"/v2/{ONE}/{kind}/{digest}")).status == 200
    await mirror.idle()
    portal = hub.script(Rule(repository=OTHER, times=None), Html())
    assert (await mirror.get(f"/v2/{OTHER}/{kind}/{digest}")).status == 503
    portal.remove()
    assert (await mirror.get(f"/v2/{OTHER}/{kind}/{digest}")).status == 404
