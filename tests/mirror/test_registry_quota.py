"""`registries.X.max_size`: a registry keeps to its part of the store, evicts its own content first, and no pull fails."""

import asyncio
import contextlib
import os
import re

import pytest

from mirror.core.digest import Digest
from mirror.maintenance import owners
from mirror.storage.account import on_disk
from mirror.storage.owner import owner_of
from tests.mirror.commands import command
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import MIB
from tests.support.waiting import eventually

HUB, OTHER = "docker.io", "other.example"


@pytest.fixture
async def start(hub, tmp_path):
    """Makes mirrors of two registries over one store."""

    def registries(**limits):
        upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
        return {name: {**upstream, "max_size": str(limits.get(key, 0))} for name, key in ((HUB, "hub"), (OTHER, "other"))}

    @contextlib.asynccontextmanager
    async def begin(**limits):
        storage = {"max_size": "0", "scrub_interval": "0"}
        async with MirrorUnderTest(hub, tmp_path / "store", storage=storage, registries=registries(**limits)) as mirror:
            mirror.registries = registries
            yield mirror

    return begin


def prefix(registry):
    return "/v2/library" if registry == HUB else f"/v2/{registry}/library"


async def pull(hub, mirror, registry, name, *sizes):
    """Pull an image of layers of these sizes through a registry; returns its outcomes. Every byte is checked."""
    image = hub.add_image(f"library/{name}", "1", layers=[os.urandom(size) for size in sizes])
    return image, await pull_again(mirror, registry, name, image)


async def pull_again(mirror, registry, name, image):
    outcomes = [(await mirror.get(f"{prefix(registry)}/{name}/manifests/1")).cache]
    for blob in (image.config, *image.layers):
        answer = await mirror.get(f"{prefix(registry)}/{name}/blobs/{blob.digest}")
        assert (answer.status, answer.sha256) == (200, blob.digest)
        outcomes.append(answer.cache)
    await mirror.idle()
    return outcomes


def taken(mirror, registry):
    """What the files of a registry take, by the files themselves."""
    found = 0
    for kind in ("blobs", "partial"):
        for path in (mirror.store_path / kind).rglob("*"):
            if path.is_file() and path.suffix != ".map" and owner_of(str(path)) == registry:
                found += on_disk(path.stat().st_size)
    return found


def accounted(mirror, registry):
    return mirror.store.quota.mark().of(registry).used


async def test_own_content_goes_first(hub, start):
    """A registry at its limit evicts its own least recently used content, though another's has not been used for longer."""
    async with start(other=3 * MIB) as mirror:
        oldest, _ = await pull(hub, mirror, HUB, "oldest", 2 * MIB)
        first, _ = await pull(hub, mirror, OTHER, "first", MIB)
        second, _ = await pull(hub, mirror, OTHER, "second", MIB)
        third, outcomes = await pull(hub, mirror, OTHER, "third", MIB + MIB // 2)
        assert set(outcomes) == {"MISS"}
        assert [mirror.holds(image.layers[0].digest) for image in (oldest, first, second, third)] == [True, False, True, True]
        for registry in (HUB, OTHER):
            assert accounted(mirror, registry) == taken(mirror, registry)
        assert accounted(mirror, OTHER) <= 3 * MIB
        assert await mirror.metric("registry_storage_bytes", registry=OTHER) == accounted(mirror, OTHER)
        assert await mirror.metric("registry_storage_limit_bytes", registry=OTHER) == 3 * MIB
        assert await mirror.metric("evicted_blobs_total", reason="registry_max_size") > 0
        assert await mirror.metric("evicted_blobs_total", reason="max_size") == 0


async def test_larger_than_the_limit(hub, start):
    """A layer that can never fit is passed through, evicts nothing, and the rest of its image is stored."""
    async with start(other=MIB) as mirror:
        small, _ = await pull(hub, mirror, OTHER, "small", MIB // 4)
        image, _ = await pull(hub, mirror, OTHER, "large", 2 * MIB, MIB // 8)
        assert mirror.holds(small.layers[0].digest)
        assert (mirror.holds(image.layers[0].digest), mirror.holds(image.layers[1].digest)) == (False, True)
        assert await mirror.metric("downloads_total", result="bypassed") == 1
        assert accounted(mirror, OTHER) == taken(mirror, OTHER) <= MIB
        # The other registry has room for it, and pays for it.
        await pull_again(mirror, HUB, "large", image)
        assert mirror.holds(image.layers[0].digest)
        assert owner_of(str(mirror.blob_path(image.layers[0].digest))) == HUB
        assert (await pull_again(mirror, OTHER, "large", image))[2] == "HIT"
        assert accounted(mirror, OTHER) == taken(mirror, OTHER) <= MIB


async def test_shared_content_is_paid_by_the_first(hub, start):
    """What two registries have counts for the one through which it came; if that one evicts it, the other fetches it again."""
    async with start() as mirror:
        image, _ = await pull(hub, mirror, OTHER, "shared", MIB)
        await pull_again(mirror, HUB, "shared", image)
        assert (accounted(mirror, HUB), accounted(mirror, OTHER)) == (0, taken(mirror, OTHER))
        for digest in (image.digest, image.config.digest, image.layers[0].digest):
            mirror.store.files.delete(Digest.parse(digest))
        mirror.store.generation.change()
        assert accounted(mirror, OTHER) == 0
        await pull_again(mirror, HUB, "shared", image)
        assert accounted(mirror, HUB) == taken(mirror, HUB) > MIB


async def test_lower_limit_after_a_reload(hub, start):
    """A reload that lowers a limit has the registry evict down to it, and to nothing else."""
    async with start() as mirror:
        kept, _ = await pull(hub, mirror, HUB, "kept", MIB)
        for number in range(4):
            await pull(hub, mirror, OTHER, f"image{number}", MIB)
        await mirror.reload(registries=mirror.registries(other=2 * MIB))
        await asyncio.to_thread(mirror.services.janitor.evict)
        assert MIB < accounted(mirror, OTHER) <= 2 * MIB
        assert accounted(mirror, OTHER) == taken(mirror, OTHER)
        assert mirror.holds(kept.layers[0].digest)
        await mirror.reload(registries={HUB: mirror.registries()[HUB]})
        assert not [name for name in await mirror.metrics() if OTHER in name and "registry_storage" in name]


async def test_restart_and_purge(hub, start):
    """A restart keeps the account of each registry, and a purge gives back what it removes."""
    async with start() as mirror:
        for registry, name in ((HUB, "one"), (OTHER, "two")):
            await pull(hub, mirror, registry, name, MIB)
        before = {registry: accounted(mirror, registry) for registry in (HUB, OTHER)}
    async with start(other=4 * MIB) as mirror:
        assert {registry: accounted(mirror, registry) for registry in (HUB, OTHER)} == before
        url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
        async with mirror.session.post(url, json={"match": f"{OTHER}/*/*"}) as answer:
            assert (await answer.json())["blobs"] == 2
        assert (accounted(mirror, HUB), accounted(mirror, OTHER)) == (before[HUB], 0)


async def test_content_of_an_earlier_version(hub, start):
    """Content without a mark, as an earlier version stored it, is counted for the registry that upstream granted it to."""
    async with start() as mirror:
        image, _ = await pull(hub, mirror, OTHER, "old", MIB)
        await pull(hub, mirror, HUB, "new", MIB)
        right = {registry: accounted(mirror, registry) for registry in (HUB, OTHER)}
        for digest in (image.digest, image.config.digest, image.layers[0].digest):
            os.removexattr(mirror.blob_path(digest), "user.registry-mirror.registry")
        await asyncio.to_thread(mirror.services.janitor.count)
        await asyncio.to_thread(mirror.services.janitor.assign_owners)
        await eventually(lambda: mirror.services.janitor.count(), "a count that nothing disturbs")
        assert {registry: accounted(mirror, registry) for registry in (HUB, OTHER)} == right
        assert taken(mirror, OTHER) == right[OTHER]


async def test_content_that_nobody_was_granted_is_looked_at_once(hub, start, monkeypatch):
    """Blobs of which no grant is known are not looked up again after each count, but another one is."""
    async with start() as mirror:
        image, _ = await pull(hub, mirror, OTHER, "old", MIB)
        layer = image.layers[0].digest
        os.removexattr(mirror.blob_path(layer), "user.registry-mirror.registry")
        mirror.store.index.grants.delete("blob", OTHER, Digest.parse(layer))
        looked_at, original = [], owners.owner_of
        monkeypatch.setattr(owners, "owner_of", lambda path: looked_at.append(path) or original(path))
        janitor = mirror.services.janitor
        for _ in range(2):
            await asyncio.to_thread(janitor.count)
            await asyncio.to_thread(janitor.assign_owners)
        assert len(looked_at) == 3
        os.removexattr(mirror.blob_path(image.digest), "user.registry-mirror.registry")
        await asyncio.to_thread(janitor.count)
        await asyncio.to_thread(janitor.assign_owners)
        assert owner_of(str(mirror.blob_path(image.digest))) == OTHER


async def test_it_is_told(hub, start, tmp_path):
    """`status` and `images` tell what each registry takes and may take; `check-config` of a limit without effect."""
    async with start(other=8 * MIB) as mirror:
        await pull(hub, mirror, HUB, "one", MIB)
        await pull(hub, mirror, OTHER, "two", 2 * MIB)
        url = ("--url", f"http://127.0.0.1:{mirror.admin_port}")
        lines = [" ".join(line.split()) for line in (await command("status", *url, directory=tmp_path))[1].splitlines()]
        assert [line for line in lines if re.fullmatch(r"docker.io 1(\.\d)?MiB in 3 blobs", line)], lines
        assert [line for line in lines if re.fullmatch(r"other.example 2(\.\d)?MiB of 8MiB in 3 blobs", line)], lines
        out = (await command("images", *url, directory=tmp_path))[1]
        assert re.search(r"^other.example: 1 images, 2(\.\d)?MiB; it takes 2(\.\d)?MiB of 8MiB in the store$", out, re.MULTILINE)
    (tmp_path / "m.yaml").write_text("storage: {max_size: 1GiB}\nregistries: {docker.io: {max_size: 2GiB}}\n")
    status, out, _ = await command("check-config", "m.yaml", directory=tmp_path)
    assert status == 0
    assert "note: registries.docker.io.max_size: 2GiB is never reached, because storage.max_size is 1GiB" in out
