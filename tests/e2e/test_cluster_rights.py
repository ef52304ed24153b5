"""What a node of a cluster serves, and to whom: bytes come from other nodes, rights from upstream."""

import pytest

from tests.e2e.harness.cluster import cluster
from tests.e2e.test_cluster import right
from tests.fakehub import Rule, Status
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP, OTHER = "library/app", "library/other"


@pytest.fixture
async def nodes(hub, redis, tmp_path):
    """Two nodes of one worker; the hub wants no tokens, and does not redirect."""
    hub.auth, hub.redirect_blobs = "none", False
    async with cluster(hub, tmp_path, redis, count=2, workers=1) as found:
        yield found


async def status(node, path):
    return (await node.get(path))[0]


async def test_blob_of_another_repository_is_not_served(hub, nodes):
    """A node holds it, but upstream does not grant it to the repository that is asked for."""
    blob = hub.add_synthetic_blob(APP, 200_000)
    hub.add_image(APP, "1", [blob])
    hub.add_image(OTHER, "1")
    first, second = nodes
    assert right(await first.whole(APP, blob.digest), blob.digest)
    for node in nodes:
        assert await status(node, f"/v2/{OTHER}/blobs/{blob.digest}") == 404
    assert right(await second.whole(APP, blob.digest), blob.digest)


async def test_manifest_of_another_repository_is_not_served(hub, nodes):
    image = hub.add_image(APP, "1")
    hub.add_image(OTHER, "1")
    assert await status(nodes[0], f"/v2/{APP}/manifests/{image.digest}") == 200
    for node in nodes:
        assert await status(node, f"/v2/{OTHER}/manifests/{image.digest}") == 404
    assert await status(nodes[1], f"/v2/{APP}/manifests/{image.digest}") == 200


async def test_large_manifest_comes_from_the_node(hub, nodes):
    """One that Redis does not hold is fetched from upstream once, and comes from the node that has it then."""
    blob = hub.add_synthetic_blob(APP, 1000)
    image = hub.add_image(APP, "1", [blob] * 3000)
    path, (first, second) = f"/v2/{APP}/manifests/{image.digest}", nodes
    _, _, body = await first.get(path)
    assert len(body) > 256 << 10
    assert await second.get(path) == (200, "MISS", body)
    assert hub.count(kind="manifest", method="GET") == 1


async def test_refusal_counts_for_all(hub, nodes):
    """Once upstream has refused a blob to one node, another one that has not got it yet asks upstream, too."""
    blob = hub.add_synthetic_blob(APP, 200_000)
    hub.add_image(APP, "1", [blob])
    first, second = nodes
    assert right(await first.whole(APP, blob.digest), blob.digest)
    hub.script(Rule(kind="blob", times=None), Status(404))
    # Asked by the node that has no grant of its own: by a HEAD, without the bytes.
    async with second.session.head(second.url(f"/v2/{APP}/blobs/{blob.digest}")) as response:
        assert response.status == 404
    second_answer = await status(second, f"/v2/{APP}/blobs/{blob.digest}")
    assert second_answer == 404


async def test_fresh_node_in_an_outage(hub, nodes, redis):
    """It serves by digest what the other one holds, by the grant that the other one was given."""
    blob = hub.add_synthetic_blob(APP, 200_000)
    image = hub.add_image(APP, "1", [blob])
    first, second = nodes
    assert await status(first, f"/v2/{APP}/manifests/{image.digest}") == 200
    assert right(await first.whole(APP, blob.digest), blob.digest)
    await eventually(redis.states, "settled", holds=lambda states: states == ["held"])
    await hub.stop()
    assert await status(second, f"/v2/{APP}/manifests/{image.digest}") == 200
    assert right(await second.whole(APP, blob.digest), blob.digest)


async def test_failure_of_upstream_is_asked_for_once(hub, nodes):
    """A node whose fetch has failed tells the others, which do not ask upstream in its turn for a moment."""
    blob = hub.add_synthetic_blob(APP, 200_000)
    hub.add_image(APP, "1", [blob])
    hub.script(Rule(kind="blob", times=None), Status(429))
    assert await status(nodes[0], f"/v2/{APP}/blobs/{blob.digest}") == 503
    asked = hub.count(kind="blob", method="GET")
    assert await status(nodes[1], f"/v2/{APP}/blobs/{blob.digest}") == 503
    assert hub.count(kind="blob", method="GET") == asked
