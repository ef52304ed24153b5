"""Nodes between which the network breaks: each node has a network of its own, whose line is cut, or lets through some of it."""

import asyncio
import contextlib
import time

import pytest

from tests.e2e.harness.cluster import Node, RedisServer
from tests.e2e.harness.network import Network, NotPermittedError
from tests.e2e.test_cluster import gets, right, takeovers
from tests.fakehub import FakeHub
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
MIB = 1 << 20
SIZE = 30 * MIB
CUT_AT = 8 * MIB
# A lease that its owner does not renew ends after ten seconds; takeovers do not wait for that. On an idle machine they take 2.3.
TAKEOVER_S = 9.0
# Upstream's last bytes for the owner that is cut off are lost, and count.
MAX_SHARE = 1.05


class RemoteNode(Node):
    """A node on a host of its own, with the time limits that operators have."""

    unhurried = False

    def __init__(self, hub, directory, server, host, **settings):
        self.host, self.network = host.address, host.path
        super().__init__(hub, directory, server, cluster={"redis": {"timeout": "250ms"}, "stall_timeout": "3s"}, **settings)
        token = directory / "token"
        token.write_text("token")
        self.settings["admin"]["token_file"] = str(token)
        self.write()


@pytest.fixture
def network():
    """The router, at which the test runs from now on."""
    try:
        made = Network()
    except NotPermittedError as error:
        pytest.skip(f"networks of their own take root, iproute2 and iptables: {error}")
    yield made
    made.close()


@pytest.fixture
def redis(network, tmp_path):
    """A Redis at the router."""
    server = RedisServer(tmp_path, host=network.address)
    yield server
    server.close()


@pytest.fixture
async def hub(network):
    """The fake Hub at the router, at the speed of a line."""
    async with FakeHub(addresses=dict.fromkeys(("registry", "cdn", "token"), network.address)) as found:
        found.auth, found.redirect_blobs, found.connection_bandwidth = "none", False, 8e6
        yield found


@contextlib.asynccontextmanager
async def cluster(hub, directory, redis, hosts):
    """A node on each host."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = [RemoteNode(hub, directory / f"node-{number}", redis, host) for number, host in enumerate(hosts)]
        await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
        await asyncio.gather(*(node.joined() for node in nodes))
        yield nodes


class Partition:
    """A blob that clients of three nodes pull while the network between these breaks."""

    def __init__(self, hub, nodes):
        self.hub, self.nodes = hub, nodes
        self.blob = hub.add_synthetic_blob(APP, SIZE, 7)
        hub.add_image(APP, "1", [self.blob])

    async def begin(self):
        """Have all nodes send the blob; the first one owns it."""
        self.pulls = [await node.blob(APP, self.blob.digest) for node in self.nodes]
        self.bodies = [asyncio.create_task(pull.rest()) for pull in self.pulls]
        await eventually(lambda: min(len(pull.got) for pull in self.pulls) > CUT_AT, "enough of it")

    async def takeover(self):
        """Wait for the second request to upstream; return where it begins, and after how many seconds it came."""
        began = time.monotonic()
        _, second = await eventually(lambda: gets(self.hub, self.blob.digest), "taken over", holds=lambda seen: len(seen) == 2)
        return int(second.range.removeprefix("bytes=").partition("-")[0]), time.monotonic() - began

    async def right(self, *numbers):
        """Whether the clients of some nodes get the blob."""
        return all([right(await self.bodies[number], self.blob.digest) for number in numbers])

    def share(self):
        """What upstream has sent, as a share of the blob."""
        return self.hub.bytes_sent(self.blob.digest) / SIZE

    async def is_cluster(self):
        """Whether the nodes are one cluster: a further blob is fetched once, and no lease is left of the first one."""
        for node in self.nodes:
            await eventually(node.metrics, "joined", holds=lambda seen: not seen["registry_mirror_cluster_alone"])
        more = self.hub.add_synthetic_blob(APP, MIB, 8)
        self.hub.add_image(APP, "2", [more])
        bodies = await asyncio.gather(*(node.whole(APP, more.digest) for node in self.nodes))
        return all(right(body, more.digest) for body in bodies) and self.hub.bytes_sent(more.digest) == more.size


async def test_owner_that_is_cut_off(hub, redis, network, tmp_path):
    """The others go on from their byte; once it is back, it follows them, settles nothing, and its client has the whole blob."""
    hosts = [network.host() for _ in range(3)]
    async with cluster(hub, tmp_path, redis, hosts) as nodes:
        partition = Partition(hub, nodes)
        await partition.begin()
        hosts[0].isolate()
        start, seconds = await partition.takeover()
        assert seconds < TAKEOVER_S
        assert start >= CUT_AT
        assert await partition.right(1, 2)
        hosts[0].heal()
        await nodes[0].logged("lease_lost")
        assert await partition.right(0)
        assert partition.share() <= MAX_SHARE
        assert await takeovers(nodes, "timeout", "connect") == 1
        assert await partition.is_cluster()
        await eventually(redis.states, "settled", holds=lambda states: states == ["held", "held"])


def both_ways(owner, followers):
    """The owner and the others do not hear each other."""
    to_owner(owner, followers)
    to_followers(owner, followers)


def to_owner(owner, followers):
    """The owner does not hear the others."""
    for follower in followers:
        owner.lose(follower.address)


def to_followers(owner, followers):
    """The others do not hear the owner."""
    for follower in followers:
        follower.lose(owner.address)


@pytest.mark.full
@pytest.mark.parametrize("cut", [both_ways, to_owner, to_followers])
async def test_owner_and_followers_are_parted(cut, hub, redis, network, tmp_path):
    """Upstream and Redis reach all of them: each side fetches the rest for its clients, once, and the lease changes once."""
    owner, *followers = hosts = [network.host() for _ in range(3)]
    async with cluster(hub, tmp_path, redis, hosts) as nodes:
        partition = Partition(hub, nodes)
        await partition.begin()
        cut(owner, followers)
        start, seconds = await partition.takeover()
        assert seconds < TAKEOVER_S
        assert start >= CUT_AT
        assert await partition.right(0, 1, 2)
        assert partition.share() <= MAX_SHARE + (SIZE - start) / SIZE
        assert await takeovers(nodes, "timeout", "connect") == 1
        for host in hosts:
            host.heal()
        await eventually(redis.states, "settled", holds=lambda states: states == ["held"])
        assert await partition.is_cluster()


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
async def test_one_node_loses_redis(number, hub, redis, network, tmp_path):
    """Its streams go on, as do those that read from it; it joins again."""
    hosts = [network.host() for _ in range(3)]
    async with cluster(hub, tmp_path, redis, hosts) as nodes:
        partition = Partition(hub, nodes)
        await partition.begin()
        hosts[number].lose(network.address, str(redis.port))
        await eventually(nodes[number].metrics, "alone", holds=lambda seen: seen["registry_mirror_cluster_alone"])
        assert await partition.right(0, 1, 2)
        assert partition.share() == 1.0
        assert (await nodes[number].ready())[0] == 200
        hosts[number].heal()
        assert await partition.is_cluster()


@pytest.mark.full
async def test_lines_that_lose_packets(hub, redis, network, tmp_path):
    """Slow is not dead: with a twentieth of all packets lost, and a delay, nobody takes over, and nothing is sent twice."""
    hosts = [network.host(), *(network.host(delay=0.01, loss=0.05) for _ in range(2))]
    async with cluster(hub, tmp_path, redis, hosts) as nodes:
        partition = Partition(hub, nodes)
        await partition.begin()
        assert await partition.right(0, 1, 2)
        assert partition.share() <= MAX_SHARE
        assert await partition.is_cluster()
