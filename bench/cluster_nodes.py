"""Simulates a cluster whose nodes all start one new image: `python -m bench.cluster_nodes`.

Who follows whom is decided by the leases of the mirror at a real Redis, one call for each blob and node, as in production.
Only time and bytes are simulated: in each step every link is divided evenly among the streams that it carries, and no node has
a byte before its parent. The latency of a hop is measured on three nodes.
"""

import argparse
import asyncio
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from prometheus_client import CollectorRegistry, Histogram
from rich.console import Console
from rich.table import Table

from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.lease import Follow, Leases, Own
from mirror.cluster.link import Link, Script
from mirror.cluster.redis_connections import RedisAddress
from mirror.core.digest import Digest

MEGA = 1e6
LAYERS = tuple(size * MEGA for size in (400, 200, 120, 80, 60, 40, 30, 20, 5, 0.01))
# containerd and Docker fetch three layers of an image at a time.
AT_ONCE = 3
STEP_S = 0.05
# Of the first byte, from a node to the one that follows it; measured with three nodes of two workers.
HOP_S = 0.012
# Beside the lease: the tag, the turn and the grant of a manifest, the grant of a blob. One for each renewal of an owned lease.
CALLS_OF_AN_IMAGE, CALLS_OF_A_BLOB, RENEW_S = 3, 1, 3.0
MAX_S = 3600.0
# Owners would renew their leases; here a second may take a minute to compute.
_KEEP = Script("return redis.call('PERSIST', KEYS[1])")


@dataclass(frozen=True)
class Plan:
    """One simulated start; rates in bytes per second."""

    nodes: int
    fan_out: int
    zones: int
    link: float
    upstream: float
    spread_s: float
    seed: int = 1


@dataclass
class Node:
    """One node, and what it has of each layer that it has begun."""

    name: str
    leases: Leases
    starts: float
    received: dict[int, float] = field(default_factory=dict)
    parents: dict[int, str | None] = field(default_factory=dict)
    flows_from: dict[int, float] = field(default_factory=dict)
    done: float | None = None

    def fetching(self) -> list[int]:
        """The layers that are arriving."""
        return [layer for layer, count in self.received.items() if count < LAYERS[layer]]


class Start:
    """A start of one image on all nodes."""

    def __init__(self, plan: Plan, link: Link) -> None:
        self.plan = plan
        self.asked = 0
        self._link = link
        self.owned_s = 0.0
        chance, self._keys = random.Random(plan.seed), Keys(f"s{time.monotonic_ns()}", str)
        keys = self._keys
        self.blobs = [Digest.of(f"{keys.name} {number}".encode()) for number in range(len(LAYERS))]
        self.nodes = {}
        for number in range(plan.nodes):
            zone = f"z{number % plan.zones}" if plan.zones else ""
            leases = Leases(link, keys, Identity(f"n{number}", zone), plan.fan_out)
            self.nodes[f"n{number}"] = Node(f"n{number}", leases, chance.uniform(0.0, plan.spread_s))

    async def run(self) -> None:
        """Let all nodes fetch the image."""
        now = 0.0
        while any(node.done is None for node in self.nodes.values()):
            if now > MAX_S:
                raise RuntimeError(f"the nodes are not done after {now:g} s")
            for node in self.nodes.values():
                if node.done is None and now >= node.starts:
                    await self._begin(node, now)
            self._step(now)
            now += STEP_S

    async def _begin(self, node: Node, now: float) -> None:
        """Ask for further layers, as long as fewer than a client fetches at once are arriving."""
        for layer in range(len(LAYERS)):
            if layer not in node.received and len(node.fetching()) < AT_ONCE:
                answer = await node.leases.ask(self.blobs[layer], "", "docker.io", may_own=True)
                self.asked += 1
                assert isinstance(answer, Own | Follow)
                node.parents[layer] = None if isinstance(answer, Own) else answer.nodes[0]
                if isinstance(answer, Own):
                    await self._link.call(_KEEP, [self._keys.lease(self.blobs[layer])])
                node.received[layer], node.flows_from[layer] = 0.0, now + HOP_S
        if len(node.received) == len(LAYERS) and not node.fetching():
            node.done = now

    def _step(self, now: float) -> None:
        flows = [
            (node, layer, None if node.parents[layer] is None else self.nodes[str(node.parents[layer])])
            for node in self.nodes.values()
            for layer in node.fetching()
            if now >= node.flows_from[layer]
        ]
        # A follower that has all of its parent's bytes uses no link.
        flows = [flow for flow in flows if flow[2] is None or flow[2].received.get(flow[1], 0.0) > flow[0].received[flow[1]]]
        sends, receives = Counter(parent.name for _, _, parent in flows if parent), Counter(node.name for node, _, _ in flows)
        owners = sum(parent is None for _, _, parent in flows)
        limits = [LAYERS[layer] if parent is None else parent.received[layer] for _, layer, parent in flows]
        for (node, layer, parent), limit in zip(flows, limits, strict=True):
            source = self.plan.upstream / owners if parent is None else self.plan.link / sends[parent.name]
            grown = node.received[layer] + min(source, self.plan.link / receives[node.name]) * STEP_S
            node.received[layer] = min(grown, limit)
            self.owned_s += STEP_S * (parent is None)

    # ---- figures

    @property
    def times(self) -> list[float]:
        """How long each node took."""
        return sorted(node.done - node.starts for node in self.nodes.values() if node.done is not None)

    @property
    def calls(self) -> int:
        """Calls to Redis in all."""
        blobs = self.plan.nodes * len(LAYERS) * CALLS_OF_A_BLOB + len(LAYERS) * 2
        return self.asked + blobs + self.plan.nodes * CALLS_OF_AN_IMAGE + round(self.owned_s / RENEW_S)

    @property
    def depth(self) -> int:
        """The most nodes between upstream and a client."""
        return max(self._depth(node.name, layer) for node in self.nodes.values() for layer in node.parents)

    def _depth(self, name: str, layer: int) -> int:
        parent = self.nodes[name].parents[layer]
        return 1 if parent is None else 1 + self._depth(parent, layer)

    @property
    def children(self) -> int:
        """The most nodes to which one sends one blob."""
        sent = Counter((parent, layer) for node in self.nodes.values() for layer, parent in node.parents.items() if parent)
        return max(sent.values(), default=0)

    @property
    def upstream_share(self) -> float:
        """What upstream has sent, as a share of the image."""
        owned = Counter(layer for node in self.nodes.values() for layer, parent in node.parents.items() if parent is None)
        return sum(LAYERS[layer] * count for layer, count in owned.items()) / sum(LAYERS)


@asynccontextmanager
async def redis() -> AsyncIterator[Link]:
    """A link to a Redis of its own."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", directory]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            link = Link(RedisAddress(f"unix://{path}", 5.0), Histogram("calls", "", registry=CollectorRegistry()), "probe")
            running = asyncio.create_task(link.run())
            try:
                async with asyncio.timeout(20):
                    while not link.is_up:
                        await asyncio.sleep(0.05)
                yield link
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await link.close()
                server.terminate()


async def cost_of_a_call(link: Link) -> float:
    """Seconds of Redis's CPU for a call of the lease script, by its own count."""
    script = Script("return redis.call('INFO', 'commandstats')")
    text = (await link.call(script, [])).decode()
    fields = dict(
        part.split("=") for line in text.splitlines() if line.startswith("cmdstat_evalsha:") for part in line[16:].split(",")
    )
    return float(fields["usec_per_call"]) / 1e6


async def simulate(plans: list[Plan]) -> Table:
    """Run the plans, and return a table of them."""
    table = Table(
        "nodes", "zones", "link", "fan-out", "depth", "children", "upstream", "calls", "Redis CPU", "p50", "p99", "last", "alone"
    )
    async with redis() as link:
        for plan in plans:
            start = Start(plan, link)
            await start.run()
            cut = quantiles(start.times, n=100)
            alone = plan.nodes * sum(LAYERS) / plan.upstream
            cost = await cost_of_a_call(link)
            table.add_row(
                f"{plan.nodes}", f"{plan.zones}", f"{plan.link * 8 / 1e9:g} Gb/s", f"{plan.fan_out}", f"{start.depth}",
                f"{start.children}", f"{start.upstream_share:.2f} x", f"{start.calls}", f"{start.calls * cost:.2f} s",
                f"{cut[49]:.1f} s", f"{cut[98]:.1f} s", f"{start.times[-1]:.1f} s", f"{alone:.0f} s",
            )  # fmt: skip
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--upstream", type=float, default=100, help="MB/s of upstream in all")
    parser.add_argument("--spread", type=float, default=5, help="seconds within which the nodes start")
    parser.add_argument("--zones", type=int, default=0)
    arguments = parser.parse_args()
    plans = [
        Plan(arguments.nodes, fan_out, arguments.zones, link * 1e9 / 8, arguments.upstream * MEGA, arguments.spread)
        for link in (1, 10)
        for fan_out in (2, 4, 8, 16)
    ]
    console = Console(width=140)
    console.print(asyncio.run(simulate(plans)))


if __name__ == "__main__":
    main()
