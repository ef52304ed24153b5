"""Pullers of a mirror of several workers, everything that disturbs them, and the account of what they were given."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fakehub import Cut, Reset, Rule
from tests.support.names import APP, KIB, MIB, blob_path, manifest_path, sha256
from tests.workers.cluster import Pull

# A request that takes longer hangs, whatever is the matter.
REQUEST_S = 60.0
# The unluckiest request: its head at one worker, its end after upstream has been cut again and again.
_MAX_LAYER = 6 * MIB


@dataclass
class Plan:
    """What happens in a run; times in seconds. Everything is drawn from the seed, but not what it meets."""

    seconds: float
    seed: int
    images: int = 12
    pullers: int = 4
    purges: int = 25
    kills: int = 20
    reload_every: float = 2.0
    cut_every: float = 0.7


@dataclass
class Account:
    """What has been given, done and found to be wrong."""

    given: Counter = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)
    cuts: int = 0
    purges: int = 0
    reloads: int = 0
    wrong: list[str] = field(default_factory=list)

    def killed_since(self, when):
        """Whether a worker was killed after `when`; a second before it counts, too, for what the dead one had accepted."""
        return any(kill > when - 1.0 for kill in self.kills)


class Soak:
    """One run.

    Attributes:
        account: what has come of it so far.
    """

    def __init__(self, hub, cluster, plan):
        self.hub, self.cluster, self.plan = hub, cluster, plan
        self.account = Account()
        self.random = random.Random(plan.seed)
        self.images = [self._image(number) for number in range(plan.images)]
        self._until = time.monotonic() + plan.seconds

    def _image(self, number):
        """Layers of all sizes: smaller than what is held back, at the edges of chunks, and of several chunks."""
        sizes = [self.random.randint(1, 60 * KIB), MIB, self.random.randint(70 * KIB, _MAX_LAYER), 2 * MIB + 1]
        layers = [self.hub.add_synthetic_blob(APP, size, number * 10 + place) for place, size in enumerate(sizes)]
        return self.hub.add_image(APP, f"{number}", layers=layers)

    async def run(self):
        """Disturb the pullers until the time is over, and let them come to the end of their last request."""
        plan = self.plan
        works = [
            *(self._pull_on(random.Random(plan.seed * 1000 + number)) for number in range(plan.pullers)),
            self._at_random(plan.purges, self._purge),
            self._at_random(plan.kills, self._kill),
            self._every(plan.reload_every, self._reload),
            self._every(plan.cut_every, self._cut),
        ]
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
        self.hub.clear_script()

    @property
    def is_over(self):
        return time.monotonic() >= self._until

    # ---- who pulls

    async def _pull_on(self, chance):
        while not self.is_over:
            image = chance.choice(self.images)
            await self._fetch(manifest_path(image.tag), image.digest, chance)
            for blob in (image.config, *chance.sample(image.layers, len(image.layers))):
                if self.is_over:
                    return
                part = chance.random() < 0.2 and blob.size > 1
                await (self._fetch_part if part else self._fetch)(blob_path(blob), blob.digest, chance, blob.size)

    async def _fetch(self, path, digest, chance, size=None):
        status, body, length = await self._asked(path, chance)
        if status == 200 and len(body) == length:
            self._note("whole", path, None if sha256(body) == digest else "a wrong body")

    async def _fetch_part(self, path, digest, chance, size):
        """A range; whether it is right is known only if it is put together with the rest."""
        start = chance.randrange(size)
        status, body, length = await self._asked(path, chance, f"bytes={start}-")
        if status != 206 or len(body) != length:
            return
        status, front, length = await self._asked(path, chance, f"bytes=0-{start - 1}") if start else (206, b"", 0)
        if status == 206 and len(front) == length:
            self._note("parts", path, None if sha256(front + body) == digest else "wrong parts")

    async def _asked(self, path, chance, span=None):
        """Status, body and announced length of an answer; (None, b"", 0) if the worker was killed."""
        began = time.monotonic()
        slow = chance.random() < 0.3
        try:
            async with asyncio.timeout(REQUEST_S):
                status, body, length = await _get(self.cluster.port, path, span, slow)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._excused("no answer", began, f"{path}: {error!r}")
            return None, b"", 0
        except TimeoutError:
            self.account.wrong.append(f"{path}: no end within {REQUEST_S:g} s")
            return None, b"", 0
        if status not in (200, 206):
            self.account.given[f"status {status}"] += 1
            if status not in (429, 503):
                self.account.wrong.append(f"{path}: {status}: {body[:200]!r}")
        elif len(body) < length:
            self._excused("short", began, f"{path}: {len(body)} of {length} bytes, range {span}")
        return status, body, length

    def _note(self, what, path, wrong):
        self.account.given[what] += 1
        if wrong:
            self.account.wrong.append(f"{path}: {wrong}")

    def _excused(self, what, began, said):
        """Something that only the death of a worker excuses: one cut of upstream is mended inside."""
        self.account.given[what] += 1
        if not self.account.killed_since(began):
            self.account.wrong.append(f"{what}: {said}")

    # ---- what disturbs them

    async def _at_random(self, times, disturb):
        moments = sorted(self.random.uniform(0.02, 0.95) * self.plan.seconds for _ in range(times))
        began = self._until - self.plan.seconds
        for moment in moments:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            await disturb()

    async def _every(self, seconds, disturb):
        while not self.is_over:
            await asyncio.sleep(seconds)
            await disturb()

    async def _purge(self):
        match = f"docker.io/{APP}:{self.random.choice([image.tag for image in self.images] + ['*'] * 3)}"
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(REQUEST_S):
                pull = await Pull(self.cluster.admin_port).begin("/api/v1/purge", method="POST", match=match)
                await pull.rest()
                self.account.purges += pull.status == 200
                if pull.status != 200:
                    self.account.wrong.append(f"purge of {match}: {pull.status}")

    async def _kill(self):
        workers = self.cluster.workers()
        # The last one alive is left: then there is always somebody who answers.
        if len(workers) > 1:
            self.account.kills.append(time.monotonic())
            os.kill(self.random.choice(workers), signal.SIGKILL)

    async def _reload(self):
        self.account.reloads += 1
        self.cluster.signal(signal.SIGHUP)

    async def _cut(self):
        fault = self.random.choice([Cut, Reset])(self.random.randrange(_MAX_LAYER))
        self.account.cuts += 1
        self.hub.script(Rule(host="cdn"), fault)

    # ---- afterwards

    async def all_right(self):
        """Pull everything, undisturbed; returns what is wrong."""
        wrong = []
        for image in self.images:
            blobs = [(blob_path(blob), blob.digest) for blob in (image.config, *image.layers)]
            for path, digest in [(manifest_path(image.tag), image.digest), *blobs]:
                status, body, _ = await _get(self.cluster.port, path)
                if (status, sha256(body)) != (200, digest):
                    wrong.append(f"{path}: {status}, {len(body)} bytes")
        return wrong


async def _get(port, path, span=None, slow=False):
    """Status, body as far as it came, and its announced length."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64 * KIB)
    try:
        extra = f"Range: {span}\r\n" if span else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length, body = int(headers["content-length"]), bytearray()
        while len(body) < length and (piece := await _piece(reader)):
            body += piece
            if slow:
                await asyncio.sleep(0.01)
        return int(head[0].split()[1]), bytes(body), length
    finally:
        writer.close()


async def _piece(reader):
    try:
        return await reader.read(256 * KIB)
    except ConnectionError:
        return b""


def opened(pids, store):
    """Files of partial blobs, and files without a name, that processes have open."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{name}")
                    if target.startswith((f"{store}/partial", f"{store}/blobs")):
                        found.append(f"{pid}: {target}")
    return found
