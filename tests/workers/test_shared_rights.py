"""Who may read what holds in every worker, whichever of them has learned it."""

import asyncio

import pytest

from tests.fakehub import Rule
from tests.support.waiting import LIMIT

ONE, OTHER = "library/one", "library/other"


async def asked(cluster, path, worker):
    """Status, outcome and body of an answer of a certain worker."""
    pull = await cluster.pull(f"/v2/{path}", worker)
    body = await pull.rest()
    return pull.status, pull.headers.get("x-cache"), body


async def test_a_grant_counts_in_every_worker(cluster, hub):
    """What a manifest names that one worker has fetched is served by the other one, which asks upstream nothing."""
    for name in (ONE, OTHER):
        image = hub.add_image(name, "1", layers=[b"base", name.encode()])
    layer = image.layers[0].digest
    first, second = cluster.workers()
    assert (await asked(cluster, f"{ONE}/blobs/{layer}", first))[0] == 200
    assert (await asked(cluster, f"{OTHER}/manifests/1", first))[2] == image.raw
    hub.reset_counters()
    assert await asked(cluster, f"{OTHER}/blobs/{layer}", second) == (200, "HIT", b"base")
    assert hub.count() == 0


@pytest.mark.parametrize("name", [OTHER, "library/invented"])
async def test_no_grant_in_any_worker(cluster, hub, name):
    """What is arriving in one worker, and then held, is not served by the other one under another name."""
    layer = hub.add_synthetic_blob(ONE, 5_000_000)
    hub.add_image(OTHER, "1")
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=2_000_000)
    first, second = cluster.workers()
    arriving = await cluster.pull(f"/v2/{ONE}/blobs/{layer.digest}", first)
    async with asyncio.timeout(LIMIT):
        await gate.reached.wait()
    assert (await asked(cluster, f"{name}/blobs/{layer.digest}", second))[:2] == (404, None)
    gate.release()
    assert len(await arriving.rest()) == layer.size
    for worker in (first, second):
        assert (await asked(cluster, f"{name}/blobs/{layer.digest}", worker))[:2] == (404, None)
        assert (await asked(cluster, f"{ONE}/blobs/{layer.digest}", worker))[:2] == (200, "HIT")
