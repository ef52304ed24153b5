"""What one worker has met makes all of them unready: a load balancer does not know which of them it asks."""

import json

from tests.support.names import TAG
from tests.support.waiting import eventually
from tests.workers.cluster import Cluster


async def test_a_refused_account(hub, tmp_path):
    """A login that one worker saw refused is told by the other one, and so is its end."""
    password = tmp_path / "password"
    password.write_text("wrong")
    hub.users = {"robot": "right"}
    hub.add_image("library/app", "1")
    account = {"username": "robot", "password_file": str(password)}
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], **account}
    async with Cluster(hub, tmp_path, registries={"docker.io": registry}) as cluster:
        first, second = cluster.workers()

        async def readiness():
            return json.loads(await cluster.admin("/readyz", second))

        async def is_ready():
            return (await readiness())["ready"]

        async def is_unready():
            return not await is_ready()

        pull = await cluster.pull(TAG, first)
        await pull.rest()
        assert pull.status == 503
        await eventually(is_unready, "not ready")
        assert list((await readiness())["credentials"]) == ["docker.io"]
        assert (await cluster.metrics(second))['registry_mirror_upstream_credentials_ok{registry="docker.io"}'] == 0
        password.write_text("right")
        await eventually(is_ready, "ready again")
        pull = await cluster.pull(TAG, second)
        await pull.rest()
        assert pull.status == 200
