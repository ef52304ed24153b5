"""Two workers, one store: the quota of a registry holds whichever of them fetches, and through a kill of all."""

import asyncio
import os
import random

from mirror.storage.account import on_disk
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of
from mirror.storage.space_quota import SpaceQuota
from tests.support.names import KIB, MIB, sha256
from tests.support.waiting import eventually
from tests.workers.cluster import Cluster, Pull
from tests.workers.kills import kill_all

HUB, OTHER = "docker.io", "other.example"
LIMIT = 2 * MIB


def settings(hub):
    upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    return {"registries": {HUB: upstream, OTHER: {**upstream, "max_size": str(LIMIT)}}, "storage": {"max_size": "0"}}


def taken(cluster, registry):
    """What the files of a registry take; without those that go while it looks."""
    found = 0
    for path in (*cluster.files("blobs"), *cluster.files("partial")):
        try:
            if path.suffix != ".map" and owner_of(str(path)) == registry:
                found += on_disk(path.stat().st_size)
        except FileNotFoundError:
            continue
    return found


def account(cluster):
    return SpaceQuota(Layout(str(cluster.store)), 0, 0).mark()


async def pull(cluster, registry, image):
    """Pull an image; whether all of it came, and right."""
    prefix = "/v2/library" if registry == HUB else f"/v2/{registry}/library"
    for path in (f"manifests/{image.tag}", *(f"blobs/{blob.digest}" for blob in (image.config, *image.layers))):
        pull = Pull(cluster.port)
        try:
            body = await (await pull.begin(f"{prefix}/app/{path}")).rest()
        finally:
            await pull.close()
        digest = image.digest if "manifests" in path else path.rpartition("/")[2]
        if (pull.status, len(body), sha256(body)) != (200, pull.length, digest):
            return False
    return True


async def test_both_keep_to_it(hub, tmp_path):
    """Many images through both registries and both workers: every pull is right, the quota holds, the accounts are right."""
    images = [hub.add_image("library/app", f"{number}", layers=[os.urandom(400 * KIB)]) for number in range(16)]
    async with Cluster(hub, tmp_path, **settings(hub)) as cluster:
        wanted = [
            (registry, image) for image in images for registry in (HUB, OTHER) if registry == OTHER or random.random() < 0.5
        ]
        exceeded = []

        async def watch():
            while True:
                used = await asyncio.to_thread(lambda: account(cluster).of(OTHER).used)
                exceeded.extend([used] if used > LIMIT else [])
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        assert all(await asyncio.gather(*(pull(cluster, *one) for one in wanted)))
        watching.cancel()
        assert not exceeded

        def right():
            found = account(cluster)
            return all(found.of(name).used == taken(cluster, name) for name in (HUB, OTHER)) and found.of(OTHER).used <= LIMIT

        await eventually(right, "accounts that agree with the files")
        assert account(cluster).of(OTHER).used > LIMIT // 2
        for pid in cluster.workers():
            figures = await cluster.metrics(pid)
            assert figures[f'registry_mirror_registry_storage_bytes{{registry="{OTHER}"}}'] == account(cluster).of(OTHER).used


async def test_killed(hub, tmp_path):
    """SIGKILL of everything while images are fetched: after the next start the accounts agree with the files."""
    images = [hub.add_image("library/app", f"{number}", layers=[os.urandom(300 * KIB)]) for number in range(12)]
    async with Cluster(hub, tmp_path, **settings(hub)) as cluster:
        pulls = [asyncio.create_task(pull(cluster, name, image)) for image in images for name in (HUB, OTHER)]
        await eventually(lambda: account(cluster).blobs >= 8, "the first blobs")
        kill_all(cluster, None)
        await asyncio.gather(*pulls, return_exceptions=True)
    async with Cluster(hub, tmp_path, **settings(hub)) as cluster:

        def right():
            found = account(cluster)
            return all(found.of(name).used == taken(cluster, name) for name in (HUB, OTHER)) and found.of(OTHER).used <= LIMIT

        await cluster.logged('"store_counted"')
        await eventually(right, "accounts that agree with the files")
        assert await pull(cluster, OTHER, images[-1])
