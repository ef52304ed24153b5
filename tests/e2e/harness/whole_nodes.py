"""Several whole mirrors in the test's own event loop that are one cluster with a real Redis."""

import asyncio
import contextlib

from tests.e2e.harness.cluster import SECRET
from tests.mirror.syncing import Orders
from tests.support.mirrors import MirrorUnderTest
from tests.support.ports import free_port
from tests.support.waiting import eventually


class WholeNode(MirrorUnderTest):
    """A mirror of a cluster. Orders are given to it as `Orders` gives them."""

    def __init__(self, hub, directory, server, **settings):
        directory.mkdir()
        (directory / "secret").write_text(SECRET)
        self.node_port = free_port()
        cluster = {
            # A busy machine is no slow Redis.
            "redis": {"url": server.url, "timeout": "5s"},
            "listen": f"127.0.0.1:{self.node_port}",
            "secret_file": str(directory / "secret"),
            "stall_timeout": "15s",
        }
        super().__init__(hub, directory / "store", cluster=cluster, **settings)
        self.orders = Orders(self)

    @property
    def name(self):
        """As the other nodes call it."""
        return f"http://127.0.0.1:{self.node_port}"

    async def joined(self):
        """Wait until it belongs to the cluster."""
        node = self.services.node
        await eventually(lambda: not node.is_alone, "Redis")
        await node.members.beat()


@contextlib.asynccontextmanager
async def whole_nodes(hub, directory, server, count=3, **settings):
    """So many nodes, all of which have joined."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = [WholeNode(hub, directory / f"whole-{number}", server, **settings) for number in range(count)]
        for node in nodes:
            await stack.enter_async_context(node)
        await asyncio.gather(*(node.joined() for node in nodes))
        yield nodes
