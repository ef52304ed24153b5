"""A cluster whose nodes, Redis and bucket are killed, frozen and cut off, and the clients that pull through it meanwhile."""

import asyncio
import contextlib
import random
import signal
import time
from dataclasses import dataclass, field

from tests.e2e.harness.cluster import Node
from tests.fakehub import Cut, Reset, Rule
from tests.support.names import KIB, MIB, sha256
from tests.support.waiting import eventually
from tests.workers.cluster import Pull

APP = "library/app"
# A client that comes no further for so long hangs, whatever is the matter.
_PULL_S = 90.0
_PAUSE_S = 0.1
_SIZES = (40 * KIB, MIB, 3 * MIB + 1, 6 * MIB)


class StormNode(Node):
    """A node with the time limits that operators have, which can be started again on its store."""

    unhurried = False

    async def crash(self):
        """Kill all its processes."""
        self.kill()
        await self.ended()
        await self.session.close()

    async def start_again(self):
        """Start it on its store, with its log behind the old one."""
        old, self.log = self.log, ""
        await self.__aenter__()
        self.log = old + self.log


@dataclass
class Report:
    """What has come of a storm.

    Attributes:
        excused: blobs that upstream was asked for while Redis was away: each node is alone then.
        wrong: what must not be.
    """

    pulls: int = 0
    resumes: int = 0
    refetches: int = 0
    disturbances: list = field(default_factory=list)
    excused: int = 0
    slowest: float = 0.0
    wrong: list = field(default_factory=list)


class Storm:
    """One run, drawn from its seed.

    Args:
        bucket: the server of the bucket.
    """

    def __init__(self, hub, nodes, redis, bucket, seed):
        self.hub, self.nodes, self.redis, self.bucket = hub, nodes, redis, bucket
        self.report = Report()
        self.blobs = []
        self._random = random.Random(seed)
        self._excused = set()

    async def run(self, seconds, every):
        """Pull new blobs by all nodes for so many seconds, and disturb something every so often; then let all recover."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pull_until(until))
            group.create_task(self._disturb_until(until, every))
        self.hub.clear_script()

    # ---- clients

    async def _pull_until(self, until):
        while time.monotonic() < until:
            sizes = self._random.choices(_SIZES, k=4)
            blobs = [self.hub.add_synthetic_blob(APP, size, len(self.blobs) + number) for number, size in enumerate(sizes)]
            self.hub.add_image(APP, "1", blobs)
            self.blobs += blobs
            await asyncio.gather(*(self.pull(blob, first) for blob in blobs for first in range(len(self.nodes))))

    async def pull(self, blob, first):
        """Pull a blob as a client does: resume where a body has ended, and turn to the next node if one fails."""
        began, body, turn = time.monotonic(), bytearray(), first
        while len(body) < blob.size or sha256(body) != blob.digest:
            if time.monotonic() - began > _PULL_S:
                self.report.wrong.append(f"{blob.digest}: no end within {_PULL_S:g} s, at {len(body)} of {blob.size}")
                return
            if len(body) >= blob.size:
                # Clients check what they have put together, and begin anew.
                self.report.refetches += 1
                body.clear()
            before = len(body)
            await self._read(self.nodes[turn % len(self.nodes)], blob, body)
            if len(body) == before:
                turn += 1
                await asyncio.sleep(_PAUSE_S)
            elif len(body) < blob.size:
                self.report.resumes += 1
        self.report.pulls += 1
        self.report.slowest = max(self.report.slowest, time.monotonic() - began)

    async def _read(self, node, blob, body):
        """Add what comes of the rest of a blob."""
        span = [f"Range: bytes={len(body)}-"] if body else []
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            pull = await Pull(node.port, span).begin(f"/v2/{APP}/blobs/{blob.digest}")
            try:
                async with asyncio.timeout(10):
                    await pull.head()
                if pull.status not in (200, 206):
                    if pull.status != 503:
                        self.report.wrong.append(f"{blob.digest}: {pull.status}: {await pull.rest()}")
                    return
                while True:
                    async with asyncio.timeout(10):
                        piece = await pull.reader.read(256 * KIB)
                    if not piece:
                        return
                    body += piece
            finally:
                await pull.close()

    # ---- what disturbs them

    async def _disturb_until(self, until, every):
        works = [self._kill, self._kill, self._freeze, self._cut, self._lose_redis, self._freeze_redis, self._freeze_bucket]
        while time.monotonic() < until:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * every)
            work = self._random.choice(works)
            self.report.disturbances.append(work.__name__.strip("_"))
            await work()

    async def _kill(self):
        node = self._random.choice(self.nodes)
        await node.crash()
        await asyncio.sleep(self._random.uniform(0.0, 2.0))
        await node.start_again()

    async def _freeze(self):
        node = self._random.choice(self.nodes)
        node.kill(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(0.5, 6.0))
        node.kill(signal.SIGCONT)

    async def _cut(self):
        self.hub.script(Rule(kind="blob", method="GET"), self._random.choice([Cut, Reset])(self._random.randrange(4 * MIB)))

    async def _lose_redis(self):
        """Redis dies, and comes back with nothing."""
        async with self._away():
            self.redis.signal(signal.SIGKILL)
            await asyncio.sleep(self._random.uniform(0.0, 2.0))
            self.redis.start()

    async def _freeze_redis(self):
        async with self._away():
            self.redis.signal(signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0.2, 3.0))
            self.redis.signal(signal.SIGCONT)

    async def _freeze_bucket(self):
        self.bucket.signal(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(0.5, 4.0))
        self.bucket.signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _away(self):
        """Until all nodes have joined again, the blobs that upstream is asked for are excused."""
        begun = len(self.hub.requests)
        yield
        for node in self.nodes:
            await eventually(node.metrics, "joined", holds=lambda seen: not seen["registry_mirror_cluster_alone"])
        self._excused |= {seen.digest for seen in self.hub.requests[begun:]}

    # ---- afterwards

    def share(self):
        """What upstream has sent of the blobs that are not excused, as a share of their bytes."""
        counted = [blob for blob in self.blobs if blob.digest not in self._excused]
        self.report.excused = len(self.blobs) - len(counted)
        return sum(self.hub.bytes_sent(blob.digest) for blob in counted) / sum(blob.size for blob in counted)
