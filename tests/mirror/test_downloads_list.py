"""`GET /api/v1/downloads`: each running download once, with its image and the clients that read it."""

import asyncio

from tests.fakehub import Rule
from tests.support.names import APP, TAG
from tests.support.waiting import LIMIT, eventually


async def listed(mirror):
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/downloads") as answer:
        return (await answer.json())["downloads"]


async def test_image_and_clients(hub, mirror):
    """A download names its image, and who reads it until they leave."""
    layer = hub.add_synthetic_blob(APP, 3_000_000)
    hub.add_image(APP, "1", layers=[layer])
    gate = hub.gate(Rule(kind="cdn", reference=layer.digest), after=1_000_000)
    await mirror.get(TAG)
    pulls = [asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{layer.digest}")) for _ in range(2)]
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    await eventually(lambda: mirror.download(layer.digest).readers == 2 and mirror.download(layer.digest).received, "both")
    (one,) = await listed(mirror)
    assert (one["image"], one["readers"], one["clients"]) == (f"docker.io/{APP}:1", 2, ["127.0.0.1"])
    assert (one["digest"], one["size"]) == (layer.digest, 3_000_000)
    assert 0 < one["bytes"] <= 3_000_000
    for pull in pulls:
        pull.cancel()
    await eventually(lambda: not mirror.download(layer.digest).readers, "nobody")
    (one,) = await listed(mirror)
    assert (one["readers"], one["clients"]) == (0, [])
    gate.release()
    await mirror.idle()
    assert await listed(mirror) == []
