"""Tags in a cluster with a real Redis: one check for all nodes, and one answer."""

import asyncio
import signal

import pytest

from tests.e2e.harness.cluster import cluster
from tests.fakehub import RateLimited, Rule, Status
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
TAG = f"/v2/{APP}/manifests/1"


@pytest.fixture
def anonymous(hub):
    """The hub without tokens and redirects: each check is one request."""
    hub.auth, hub.redirect_blobs = "none", False
    return hub


async def answers(nodes, path=TAG):
    """What each of the nodes answers, asked at once: status, outcome, body."""
    return await asyncio.gather(*(node.get(path) for node in nodes))


async def test_one_node_asks(anonymous, redis, tmp_path):
    """Three nodes, asked at once for a tag that nobody knows: upstream sees one HEAD, and one GET by digest.

    What upstream does not have, or denies, no node asks for again within `not_found_ttl`.
    """
    anonymous.add_image(APP, "1")
    async with cluster(anonymous, tmp_path, redis, tags={"ttl": "1h", "not_found_ttl": "1h"}) as nodes:
        anonymous.reset_counters()
        assert {status for status, *_ in await answers([*nodes, *nodes])} == {200}
        assert anonymous.count(method="HEAD") == 1
        assert anonymous.count(method="GET", kind="manifest") == 1

        anonymous.reset_counters()
        assert [status for status, *_ in await answers(nodes, f"/v2/{APP}/manifests/2")] == [404] * 3
        assert anonymous.count(kind="manifest") == 1
        anonymous.script(Rule(kind="manifest", times=None), Status(403))
        assert [status for status, *_ in await answers(nodes, f"/v2/{APP}/manifests/3")] == [404] * 3
        assert anonymous.count(kind="manifest") == 2


async def test_fresh_node_in_an_outage(anonymous, redis, tmp_path):
    """It serves by tag what another node has learned, although upstream cannot be asked."""
    anonymous.add_image(APP, "1")
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1, tags={"ttl": "0s"}) as (first, second):
        _, _, body = await first.get(TAG)
        await anonymous.stop()
        assert await second.get(TAG) == (200, "STALE", body)


async def test_pull_limit_counts_for_all(anonymous, redis, tmp_path):
    """After a 429 to one node, or with no pulls left, no other node spends a request on it."""
    anonymous.add_image(APP, "1")
    anonymous.add_image(APP, "2", layers=[anonymous.add_synthetic_blob(APP, 1000)])
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1, tags={"ttl": "1h"}) as (first, second):
        anonymous.script(Rule(kind="manifest", method="GET", times=None), RateLimited(retry_after=3600))
        assert (await first.get(TAG))[0] == 503
        (key,) = await eventually(lambda: redis.command("keys", "*:bu:*"), "known", holds=bool)
        await eventually(lambda: redis.command("hkeys", key), "limited", holds=lambda kinds: "manifest" in kinds)
        anonymous.reset_counters()
        assert (await second.get(f"/v2/{APP}/manifests/2"))[0] == 503
        assert anonymous.count(method="GET", kind="manifest") == 0
        assert anonymous.count(method="HEAD", kind="manifest") == 1


async def test_resync_asks_once(anonymous, redis, tmp_path):
    """Each node brings its own store in sync, and upstream is asked once in a round of all."""
    blob = anonymous.add_synthetic_blob(APP, 1000)
    anonymous.add_image(APP, "1", layers=[blob])
    sync = {"images": [f"docker.io/{APP}:1"], "interval": "1h"}
    async with cluster(anonymous, tmp_path, redis, workers=1, tags={"ttl": "1h"}, sync=sync) as nodes:
        for node in nodes:
            await eventually(
                node.metrics, "synced", holds=lambda seen: seen["registry_mirror_sync_last_success_timestamp_seconds"]
            )
        checks = [seen for seen in anonymous.find(method="HEAD", kind="manifest") if seen.path.endswith("/1")]
        assert len(checks) == 1, [(seen.method, seen.path) for seen in anonymous.find()]
        assert {status for status, *_ in await answers(nodes)} == {200}
        assert anonymous.bytes_sent(blob.digest) == blob.size


@pytest.mark.full
async def test_redis_hangs_while_a_tag_is_checked(anonymous, redis, tmp_path):
    """Each node checks for itself."""
    anonymous.add_image(APP, "1")
    async with cluster(
        anonymous, tmp_path, redis, count=2, workers=1, cluster={"redis": {"timeout": "250ms"}}, tags={"ttl": "0s"}
    ) as nodes:
        assert {status for status, *_ in await answers(nodes)} == {200}
        redis.signal(signal.SIGSTOP)
        anonymous.reset_counters()
        assert {(status, outcome) for status, outcome, _ in await answers(nodes)} == {(200, "REVALIDATED")}
        assert anonymous.count(method="HEAD") == 2
        redis.signal(signal.SIGCONT)
