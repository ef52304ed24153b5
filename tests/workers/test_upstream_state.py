"""Whether an upstream is in order is what the worker knows that has asked it last, whichever worker tells."""

import json

import pytest

from tests.fakehub import Rule, Status
from tests.support.names import APP, TAG, manifest_path
from tests.workers.cluster import Cluster


@pytest.mark.parametrize("failing", [False, True])
async def test_last_answer_counts(hub, tmp_path, failing):
    """One worker has failed, and is not asked again; the other one's answer after that, or before it, is told by both."""
    hub.add_image(APP, "1")
    async with Cluster(hub, tmp_path) as cluster:
        first, second = cluster.workers()

        async def pull(worker, path, status):
            request = await cluster.pull(path, worker)
            await request.rest()
            assert request.status == status
            # Publishes what this worker knows.
            await cluster.metrics(worker)

        async def fail():
            entry = hub.script(Rule(kind="manifest", times=None), Status(500))
            await pull(first, manifest_path("none"), 503)
            entry.remove()

        if failing:
            await pull(second, TAG, 200)
            await fail()
        else:
            await fail()
            await pull(second, TAG, 200)
        upstream = hub.url.partition("://")[2]
        for worker in (first, second):
            up = (await cluster.metrics(worker))[f'registry_mirror_upstream_up{{registry="docker.io",upstream="{upstream}"}}']
            (told,) = json.loads(await cluster.admin("/api/v1/status", worker))["upstreams"]
            state = json.loads(await cluster.admin("/readyz", worker))["upstreams"][f"docker.io {upstream}"]
            assert (up, told["up"]) == (not failing, not failing)
            (explained,) = json.loads(await cluster.admin(f"/api/v1/explain?image={APP}:1", worker))["upstreams"]
            assert {told["state"], state, explained["state"]} == {state}
            assert (state == "up") == (not failing)
            assert told["pulls_left"] == explained["pulls_left"] == hub.ratelimit_remaining
