"""`explain` says why an image was last fetched for a client, also after a restart and in another worker."""

import asyncio
import contextlib

import pytest

from mirror.core.digest import Digest
from tests.mirror.commands import command
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG


@pytest.fixture
async def start(hub, tmp_path):
    @contextlib.asynccontextmanager
    async def begin(**storage):
        async with MirrorUnderTest(hub, tmp_path / "store", storage={"scrub_interval": "0", **storage}) as mirror:
            yield mirror

    return begin


async def miss(mirror, image="app:1"):
    # Clients do not wait for the thread that writes it.
    await asyncio.wrap_future(mirror.store.threads.note.submit(int))
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/explain", params={"image": image}) as answer:
        return (await answer.json())["miss"]


async def pull(mirror, image):
    answer = await mirror.get(TAG)
    assert (answer.status, answer.sha256) == (200, image.digest)
    for blob in (image.config, *image.layers):
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).status == 200
    await mirror.idle()
    return answer.cache


async def test_new(hub, start):
    """An image that was never here, and nothing for one that nobody has pulled; a hit changes nothing."""
    image = hub.add_image(APP, "1")
    async with start() as mirror:
        assert await miss(mirror) is None
        await pull(mirror, image)
        found = await miss(mirror)
        assert (found["cause"], found["since"]) == ("new", None)
        assert await pull(mirror, image) == "HIT"
        assert await miss(mirror) == found


async def test_moved(hub, start, tmp_path):
    """A tag that had moved upstream."""
    old = hub.add_image(APP, "1")
    async with start() as mirror:
        await mirror.reload(tags={"ttl": "0s"})
        await pull(mirror, old)
        new = hub.add_image(APP, "1", layers=[b"new"])
        assert await pull(mirror, new) == "MISS"
        found = await miss(mirror)
        assert found["cause"] == "moved"
        assert str(old.digest) in found["text"]
        assert await pull(mirror, new) == "REVALIDATED"
        assert (await miss(mirror))["cause"] == "moved"
        out = (await command("explain", "app:1", "--url", f"http://127.0.0.1:{mirror.admin_port}", directory=tmp_path))[1]
        assert any(line.split()[:2] == ["last", "miss"] and "moved upstream" in line for line in out.splitlines())


async def test_purged(hub, start):
    """An image that an operator had purged, and from where."""
    image = hub.add_image(APP, "1")
    async with start() as mirror:
        await pull(mirror, image)
        async with mirror.session.post(f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge", json={"match": "app:1"}) as answer:
            assert (await answer.json())["tags"] == 1
        assert await pull(mirror, image) == "MISS"
        found = await miss(mirror)
        assert (found["cause"], found["text"]) == ("purged", "it had been purged by 127.0.0.1")
        assert found["since"] < found["when"]
    async with start() as mirror:
        assert await miss(mirror) == found


async def test_evicted(hub, start, blobs_only):
    """An image that had been evicted, and for which bound."""
    image = hub.add_image(APP, "1", layers=[bytes(300_000)])
    async with start() as mirror:
        await pull(mirror, image)
        mirror.store.quota.max_size = mirror.store.quota.used() - 1
        while mirror.services.janitor.evict():
            pass
        assert not mirror.holds(image.digest)
        mirror.store.quota.max_size = 0
        assert await pull(mirror, image) == "MISS"
        found = await miss(mirror)
        assert (found["cause"], found["text"]) == ("evicted", "it had been evicted to keep max_size")
        assert (await miss(mirror, f"app@{image.digest}")) is None


async def test_lost(hub, start):
    """An image whose content is gone for a reason that nobody has recorded."""
    image = hub.add_image(APP, "1")
    async with start() as mirror:
        await pull(mirror, image)
        mirror.store.files.delete(Digest.parse(image.digest))
        mirror.store.generation.change()
        assert await pull(mirror, image) == "MISS"
        assert (await miss(mirror))["cause"] == "lost"
