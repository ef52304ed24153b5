"""Mixed load on a mirror of two workers, with what each client has seen of it."""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.fakehub import Corrupt, Cut, FakeHub, NoHeaders, RateLimited, Rule, Status
from tests.support.names import ABSENT, blob_path, manifest_path
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, Pull, owner

APP, OTHER, BAD = "library/app", "library/other", "library/bad"
NODES = "127.0.0.1", "127.0.0.9"
LAYER_BYTES, COLD_BYTES = 300_000, 4 << 20


@dataclass(frozen=True)
class Seen:
    """What a client has seen of one request.

    `size` counts the bytes of the body that have arrived; `is_whole` is false if the body ended short or the client left.
    """

    method: str
    path: str
    status: int
    outcome: str
    size: int
    is_whole: bool
    request: str


class MixedLoad:
    """A mirror with an access log in front of two registries; `run` has clients ask it for everything there is.

    Attributes:
        seen: what the clients have seen, in the order of the answers' ends.
        left: how many clients have left before an answer.
        purged: the answers to purges.

    Args:
        account: the mirror has an account at the second registry.
    """

    def __init__(self, hub: FakeHub, second: FakeHub, directory: Path, *, account: bool = False) -> None:
        self.hub, self.second, self.directory = hub, second, directory
        self.seen: list[Seen] = []
        self.left = 0
        self.purged: list[dict[str, Any]] = []
        self._nodes: dict[str, aiohttp.ClientSession] = {}
        rules = {"deny": [f"{BAD}:*"], "tags": [{"match": f"{APP}:fresh", "ttl": "1h"}]}
        login = {}
        if account:
            second.users["me"] = "secret"
            (directory / "password").write_text("secret")
            login = {"username": "me", "password_file": str(directory / "password")}
        self.cluster = Cluster(
            hub,
            directory,
            log={"format": "json", "access": "all"},
            downloads={"stall_timeout": "90s", "prefetch": True},
            registries={
                "docker.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host], **rules},
                "second.example": {
                    "upstreams": [second.url],
                    "token_hosts": [second.token_host],
                    "max_size": "10GiB",
                    **login,
                },
            },
        )

    @property
    def admin_url(self) -> str:
        """The admin address."""
        return f"http://127.0.0.1:{self.cluster.admin_port}"

    async def run(self) -> None:
        """Run all of the load, and wait until nothing is under way."""
        async with contextlib.AsyncExitStack() as stack:
            for node in NODES:
                connector = aiohttp.TCPConnector(local_addr=(node, 0))
                timeout = aiohttp.ClientTimeout(total=LIMIT)
                self._nodes[node] = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
            await self._run()

    async def _run(self) -> None:
        image = self.hub.add_image(APP, "fresh", layers=[os.urandom(LAYER_BYTES)])
        for tag in ("1", "limited"):
            self.hub.move_tag(APP, tag, image.digest)
        self.hub.add_referrer(APP, image.digest)
        self.hub.add_image(OTHER, "1", layers=[os.urandom(LAYER_BYTES)])
        self.hub.add_image(BAD, "1")
        self.second.add_image("team/tool", "1", layers=[os.urandom(LAYER_BYTES)])
        for step in (
            self._pulls,
            self._hits,
            self._refusals,
            self._joined,
            self._broken,
            self._aborted,
            self._purges,
            self._stale,
        ):
            await step()
            await self._idle()

    async def ask(self, path: str, method: str = "GET", node: str = NODES[0], **headers: str) -> Seen:
        """Send one request from an address over a kept connection, and note what comes."""
        size, is_whole = 0, True
        async with self._nodes[node].request(method, self.cluster.url(path), headers=headers) as response:
            try:
                async for piece in response.content.iter_any():
                    size += len(piece)
            except aiohttp.ClientPayloadError:
                is_whole = False
            found = response.headers
        seen = Seen(method, path, response.status, found.get("X-Cache", ""), size, is_whole, found["X-Request-Id"])
        self.seen.append(seen)
        return seen

    async def _ask_all(self, asks: list[Coroutine[Any, Any, Seen]]) -> None:
        await asyncio.gather(*asks)

    async def _pulls(self) -> None:
        """Two clients pull three images."""
        for repository, tag in ((APP, "1"), (OTHER, "1"), ("second.example/team/tool", "1")):
            hub = self.second if "tool" in repository else self.hub
            held = hub.repositories[repository.removeprefix("second.example/")]
            paths = [manifest_path(tag, repository), manifest_path(held.tags[tag], repository)]
            for path in paths + [blob_path(blob, repository) for blob in held.blobs]:
                await self._ask_all([self.ask(path, node=node) for node in NODES])
        for tag in ("fresh", "limited"):
            await self.ask(manifest_path(tag))

    async def _hits(self) -> None:
        """Hits of every form: heads, conditions, ranges, lists; over connections to both workers."""
        image = self.hub.repositories[APP].tags["fresh"]
        *_, layer = (blob for blob in self.hub.repositories[APP].blobs.values() if blob.size == LAYER_BYTES)
        small = next(digest for digest, blob in self.hub.repositories[APP].blobs.items() if blob.size < LAYER_BYTES)
        tags, referrers = f"/v2/{APP}/tags/list", f"/v2/{APP}/referrers/{image}"
        held = (manifest_path("fresh"), manifest_path(image), blob_path(small), blob_path(layer))
        for _ in range(3):
            await self._ask_all([self.ask(path) for path in held for _ in range(4)])
        for method in ("GET", "HEAD"):
            for path in (*held, manifest_path("1"), tags, referrers, "/v2/", "/v2/_catalog"):
                await self.ask(path, method)
                await self.ask(path, method, **{"If-None-Match": f'"{image}", "{layer.digest}"'})
            for wanted in ("bytes=0-99", "bytes=1000-", "bytes=0-9,100-199,5000-", "bytes=999999-", "bytes=5-1", "furlongs=1-2"):
                await self.ask(blob_path(layer), method, Range=wanted)

    async def _refusals(self) -> None:
        """What the mirror or upstream refuses."""
        denied, unknown, malformed = (
            (manifest_path("1", BAD),),
            (manifest_path("none"), blob_path(ABSENT), manifest_path("1", "library/absent"), "/v2/library/absent/tags/list"),
            (blob_path("sha256:x"), "/v2/UPPER/manifests/1", f"/v2/{APP}/tags/list?n=x"),
        )
        elsewhere = "/elsewhere", f"{manifest_path('1')}?ns=nowhere.example"
        for path in (*denied, *unknown, *malformed, *elsewhere):
            await self.ask(path)
            await self.ask(path, "HEAD")
        for method in ("PUT", "DELETE", "POST"):
            await self.ask(manifest_path("1"), method)

    async def _stale(self) -> None:
        """Upstream limits the rate, fails, and is down."""
        for fault, tag in ((Status(503), "1"), (RateLimited(), "limited")):
            entry = self.hub.script(Rule(kind="manifest", times=None), fault)
            await self._ask_all([self.ask(manifest_path(tag)) for _ in range(3)])
            await self.ask(manifest_path(tag), "HEAD")
            await self.ask(manifest_path(f"not-{tag}"))
            entry.remove()
        await self.second.stop()
        tool = "second.example/team/tool"
        for path in (manifest_path("1", tool), manifest_path("2", tool), f"/v2/{tool}/tags/list", blob_path(ABSENT, tool)):
            await self.ask(path)

    async def _joined(self) -> None:
        """Five clients pull one cold blob at a time, three of them a part of it."""
        blob = self.hub.add_image(APP, "large", layers=[os.urandom(COLD_BYTES)]).layers[0]
        gate = self.hub.gate(Rule(kind="cdn"), COLD_BYTES // 2)
        # Its prefetch begins with the download.
        await self.ask(manifest_path("large"))
        asks = [
            asyncio.ensure_future(self.ask(blob_path(blob), **headers))
            for headers in ({}, {}, *[{"Range": "bytes=100-70000"}] * 3)
        ]
        async with asyncio.timeout(LIMIT):
            await gate.reached.wait()
        await eventually(self._readers, holds=lambda count: count >= 2)
        gate.release()
        await asyncio.gather(*asks)

    async def _broken(self) -> None:
        """Bodies from upstream that break, are wrong, or never come."""
        self.hub.add_image(APP, "cut")
        self.hub.script(Rule(kind="manifest", reference="cut", method="GET"), Cut(100))
        self.hub.script(Rule(kind="tags"), Cut(10))
        for path in (manifest_path("cut"), f"/v2/{OTHER}/tags/list"):
            await self.ask(path)
        for fault in (Cut(100_000), Corrupt(at=10), Corrupt(at=200_000)):
            blob = self.hub.add_image(APP, "broken", layers=[os.urandom(LAYER_BYTES)]).layers[0]
            await self.ask(manifest_path("broken"), "HEAD")
            self.hub.script(Rule(kind="cdn", reference=blob.digest, times=1 if isinstance(fault, Cut) else None), fault)
            await self._ask_all([self.ask(blob_path(blob)) for _ in range(2)])

    async def _aborted(self) -> None:
        """Clients leave: before the answer, in the middle of a cold body, and of a hit."""
        blob = self.hub.add_image(APP, "left", layers=[os.urandom(COLD_BYTES)]).layers[0]
        gate = self.hub.gate(Rule(kind="cdn", reference=blob.digest), 1 << 20)
        pull = await (await Pull(self.cluster.port).begin(blob_path(blob))).head()
        await self._leave(await pull.read(1000))
        gate.release()
        silent = self.hub.add_image(APP, "silent")
        await self._leave_early(manifest_path("silent"), Rule(kind="manifest", reference="silent", method="GET"))
        await self._leave_early(blob_path(silent.config), Rule(kind="cdn", reference=silent.config.digest))
        await self._idle()
        pull = await (await Pull(self.cluster.port).begin(blob_path(blob))).head()
        await self._leave(await pull.read(1000))

    async def _leave_early(self, path: str, rule: Rule) -> None:
        """Ask for something of which upstream sends nothing, and leave before the answer."""
        entry = self.hub.script(rule, silence := NoHeaders())
        pull = await Pull(self.cluster.port).begin(path)
        async with asyncio.timeout(LIMIT):
            await silence.reached.wait()
        await self._leave(pull)
        workers = self.cluster.workers()
        await eventually(lambda: owner(self.cluster.port, pull.local, workers) is None, "the mirror has noticed")
        silence.release()
        entry.remove()

    async def _leave(self, pull: Pull) -> None:
        await pull.close()
        self.left += 1

    async def _purges(self) -> None:
        """An image is purged and pulled again."""
        for body in ({"match": f"{OTHER}:1", "dry_run": True}, {"match": f"{OTHER}:1", "soft": True}, {"match": f"{OTHER}:1"}):
            async with self.cluster.session.post(f"{self.admin_url}/api/v1/purge", json=body) as response:
                self.purged.append({**body, **await response.json()})
            await self.ask(manifest_path("1", OTHER))

    async def settle(self) -> dict[str, float]:
        """Wait until both workers have written what they know; the samples of /metrics."""
        for worker in self.cluster.workers():
            # A line that follows all others of this worker.
            pull = await self.cluster.pull("/v2/", worker, f"X-Request-Id: last-of-{worker}")
            await pull.rest()
            await self.cluster.logged(f'"last-of-{worker}"')
            await self.cluster.metrics(worker)
        return await self.cluster.metrics()

    def lines(self) -> list[dict[str, Any]]:
        """The access log, without the lines of `settle`."""
        found = [event for event in self.cluster.events() if event["event"] == "request"]
        return [line for line in found if not line["request"].startswith("last-of-")]

    async def _readers(self) -> float:
        return (await self.cluster.metrics())["registry_mirror_download_readers"]

    async def _idle(self) -> None:
        """Wait until upstream has sent what it was asked for, and no download is under way."""
        await eventually(lambda: not self.hub.active and not self.second.active, "upstream at rest")
        await eventually(self.cluster.metrics, holds=lambda seen: not seen["registry_mirror_downloads_in_progress"])
