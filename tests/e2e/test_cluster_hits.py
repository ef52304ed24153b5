"""What a hit costs a node of a cluster: the same as a mirror by itself."""

import sys

import pytest

from tests.support.mirrors import MirrorUnderTest
from tests.support.ports import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
REQUESTS, ROUNDS = 10, 8
# A hit of the node may make so many calls more.
MAX_SHARE = 1.02


async def calls(mirror, path):
    """Calls of Python and C functions for some hits: the least of several rounds, in which nothing else was done."""
    assert (await mirror.get(path)).status == 200
    await mirror.idle()
    counts = []
    for _ in range(ROUNDS):
        count = 0

        def note(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            for _ in range(REQUESTS):
                assert (await mirror.get(path)).cache == "HIT"
        finally:
            sys.setprofile(None)
        counts.append(count)
    return min(counts)


async def test_hit_of_a_node_costs_what_it_costs_by_itself(hub, redis, tmp_path):
    """Counted in calls, which a busy machine does not change; the client's own are the same in both."""
    blob = hub.add_synthetic_blob(APP, 200_000)
    image = hub.add_image(APP, "1", [blob])
    paths = [f"/v2/{APP}/blobs/{blob.digest}", f"/v2/{APP}/manifests/{image.digest}", f"/v2/{APP}/manifests/1"]
    secret = tmp_path / "secret"
    secret.write_text("a secret of forty characters, more or less")
    section = {"redis": {"url": redis.url}, "listen": f"127.0.0.1:{free_port()}", "secret_file": str(secret)}
    async with (
        MirrorUnderTest(hub, tmp_path / "node", cluster=section) as node,
        MirrorUnderTest(hub, tmp_path / "alone") as alone,
    ):
        await eventually(lambda: node.services.node.link.is_up, "joined")
        for path in paths:
            by_itself = await calls(alone, path)
            assert by_itself > 100 * REQUESTS
            assert await calls(node, path) <= MAX_SHARE * by_itself, path
