"""A node whose bytes are damaged on their way while it still fetches: real clients of another node get the right image."""

import asyncio
import contextlib
import random
from dataclasses import dataclass

import pytest

from tests.e2e.harness.cluster import Node
from tests.e2e.harness.containerd import Containerd, PullError
from tests.e2e.harness.damage import DamagingLine
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.skopeo import CopyError, Skopeo
from tests.e2e.test_cluster import right
from tests.fakehub import Rule, layer
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.full]

APP = "library/app"
MIB = 1 << 20


@dataclass
class Scene:
    """A node that follows another one over a line that damages a byte.

    Attributes:
        gate: upstream's answer to the owner stops there.
    """

    image: object
    follower: Node
    line: DamagingLine
    gate: object

    async def pull(self, client, *arguments):
        """What a client does in a thread, during which it is sent the damaged byte."""
        pulling = asyncio.create_task(asyncio.to_thread(client, *arguments))
        await eventually(lambda: self.line.damaged, "a damaged byte")
        self.gate.release()
        await pulling


@pytest.fixture
async def scene(anonymous, redis, tmp_path):
    """The owner of a layer is stopped by upstream behind the place that will be damaged; the follower has been asked for nothing.

    Afterwards nothing wrong is stored, and the owner has been found out.
    """
    image = anonymous.add_image(APP, "1", [layer({"data": random.Random(1).randbytes(8 * MIB)})])
    (blob,) = image.layers
    owner, follower = (Node(anonymous, tmp_path / f"node-{number}", redis, workers=1) for number in range(2))
    async with DamagingLine(owner.node_port, 2 * MIB + 17) as line, contextlib.AsyncExitStack() as stack:
        owner.write(cluster={**owner.settings["cluster"], "advertise": line.url})
        for node in (owner, follower):
            await stack.enter_async_context(node)
            await node.joined()
        gate = anonymous.gate(Rule(kind="blob", method="GET"), after=4 * MIB)
        first = await owner.blob(APP, blob.digest)
        await first.read(MIB)
        yield Scene(image, follower, line, gate)
        assert right(await first.rest(), blob.digest)
        await follower.logged("node_poisoned")
        assert right(await follower.whole(APP, blob.digest), blob.digest)
        files = await eventually(lambda: follower.files("blobs"), "stored", holds=lambda found: len(found) >= 2)
        assert all(right(file.read_bytes(), f"sha256:{file.name}") for file in files)


async def test_dockerd_recovers(scene, tmp_path):
    """It finds out that what it has put together is wrong, and begins anew by itself."""
    daemon = await asyncio.to_thread(Dockerd, tmp_path / "dockerd", f"http://127.0.0.1:{scene.follower.port}")
    try:
        await scene.pull(daemon.pull, APP, "1")
        assert daemon.inspect(f"{APP}:1").image_id == scene.image.config.digest
    finally:
        await asyncio.to_thread(daemon.close)


async def test_containerd_recovers(scene, anonymous, tmp_path):
    """Its pull fails, and so do further ones until it has cleared away what it has put together; then one succeeds."""
    name = f"docker.io/{APP}:1"
    containerd = await asyncio.to_thread(Containerd, tmp_path / "containerd")
    try:
        hosts = containerd.hosts("hosts.d", "docker.io", anonymous.url, f"http://127.0.0.1:{scene.follower.port}")
        with pytest.raises(PullError, match="unexpected commit digest"):
            await scene.pull(containerd.pull, hosts, name)

        async def again():
            try:
                await asyncio.to_thread(containerd.pull, hosts, name)
            except PullError:
                return False
            return True

        await eventually(again, "a pull that succeeds")
        assert containerd.image_digest(name) == scene.image.digest
    finally:
        await asyncio.to_thread(containerd.close)


async def test_skopeo_recovers(scene, tmp_path):
    """Its pull fails, for it does not resume a body that ends short so soon; the next one succeeds."""
    skopeo = Skopeo(tmp_path / "skopeo", scene.follower.port)
    with pytest.raises(CopyError, match="unexpected EOF"):
        await scene.pull(skopeo.copy, f"docker.io/{APP}:1")
    await asyncio.to_thread(skopeo.copy, f"docker.io/{APP}:1")
