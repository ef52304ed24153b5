"""Leases on blobs: the first node that asks fetches a blob, and the others learn from which nodes they get it.

A lease is a value in Redis that its owner renews. It only saves work: content is addressed by its digest and verified by each
node, so two owners cost traffic, never wrong bytes. A follower whose owner fails replaces the value if it is still the one that
the follower has seen, and so becomes the owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from functools import partial

import structlog

from mirror.cluster.checksums import CHECKSUM_BYTES, checksums_of
from mirror.cluster.failures import decode_failure, encode_failure
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.lease_scripts import ASK, END, RENEW
from mirror.cluster.link import Link, LinkDown, Script
from mirror.cluster.members import TTL_S as BEAT_TTL_S
from mirror.core.digest import Digest
from mirror.download.downloads import Downloads
from mirror.errors import UpstreamError
from mirror.storage.blobs import BlobFiles

log = structlog.get_logger(__name__)

# An owner that has not renewed its lease for `_TTL_MS` has lost it.
_TTL_MS, _RENEW_S = 10_000, 3.0
_HELD_MS = 6 * 3_600_000
# How long other nodes repeat the failure of an owner instead of asking upstream.
_FAILED_MS = 5_000
_POLL_INTERVAL_S = 1.0

_GET = Script("return redis.call('GET', KEYS[1])")
_PUT = Script("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")


@dataclass(frozen=True, slots=True)
class Own:
    """This node fetches the blob from upstream.

    Attributes:
        is_new: this call has brought the lease.
        others: nodes that may have some of the blob, if the lease was taken over.
    """

    value: str
    is_new: bool = True
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Follow:
    """Other nodes have the blob, or receive it.

    Attributes:
        value: of the lease; `Leases.ask` replaces it if all of them fail.
        nodes: in the order in which to try them; the owner is the last one.
        is_silent: the owner has not beaten lately.
    """

    value: str
    nodes: tuple[str, ...]
    is_silent: bool = False

    @property
    def is_held(self) -> bool:
        """Whether the owner has the whole blob."""
        return self.value.startswith("held|")


@dataclass(frozen=True, slots=True)
class Alone:
    """There is no lease: Redis cannot be asked, or nobody fetches the blob and this node cannot store it."""


Answer = Own | Follow | Alone


class Leases:
    """The leases of this process.

    Args:
        me: this node.
        fan_out: the maximum of nodes that one node sends a blob to.

    Needs `run` to be running, which renews and ends leases.
    """

    def __init__(self, link: Link, keys: Keys, me: Identity, fan_out: int) -> None:
        self._link = link
        self._keys = keys
        self._me = me
        self._fan_out = fan_out
        self._owned: dict[Digest, _Lease] = {}
        # Leases of downloads that have ended, until other nodes find the blob here.
        self._settling: dict[Digest, asyncio.Task[None]] = {}

    async def ask(self, digest: Digest, suspect: str, scope: str, *, may_own: bool) -> Answer:
        """Return from where to get a blob.

        Args:
            suspect: a value whose nodes have failed, or nothing.
            scope: of the registry.
            may_own: whether other nodes could get the blob from this one.

        Raises:
            UpstreamError: another node has asked upstream a moment ago, and upstream failed.
        """
        me, zone, token = self._me.name, self._me.zone, os.urandom(8).hex()
        args = (me, suspect, token, int(may_own), self._fan_out, scope, _TTL_MS, _HELD_MS, zone, BEAT_TTL_S)
        try:
            # For one lost answer this node would fetch the whole blob by itself.
            found = await self._link.insist(ASK, [*self._names(digest), self._keys.nodes], *args)
        except LinkDown:
            return Alone()
        kind, *rest = (text.decode(errors="replace") for text in found)
        if kind in ("own", "owned"):
            self._owned.setdefault(digest, _Lease(rest[0])).value = rest[0]
            return Own(rest[0], kind == "own", tuple(dict.fromkeys(rest[1:])))
        if kind == "follow":
            nodes = tuple(dict.fromkeys(node.removeprefix("!") for node in rest[1:]))
            return Follow(rest[0], nodes, rest[-1].startswith("!"))
        if kind == "failed" and (failure := decode_failure(rest[0].partition("|")[2])) is not None:
            raise failure
        return Alone()

    def owns(self, digest: Digest) -> bool:
        """Whether this process has the lease of a blob, as far as it knows."""
        return digest in self._owned

    async def confirm(self, digest: Digest) -> None:
        """Find out at once whether this process still has a lease: others may have taken it over during a silence."""
        lease = self._owned.get(digest)
        if lease is not None:
            await self._link.probe()
            await self._renew(digest, lease)

    async def fail(self, digest: Digest, error: UpstreamError, scope: str) -> None:
        """End a lease because upstream failed; other nodes repeat the failure for a moment."""
        failure = encode_failure(error)
        value = "" if failure is None else f"failed|{os.urandom(8).hex()}|{self._me.name}|{scope}|{failure}"
        await self._end(digest, value, _FAILED_MS)

    async def release(self, digest: Digest) -> None:
        """End a lease; the next node that asks gets it."""
        await self._end(digest, "", 0)

    async def run(self, files: BlobFiles, downloads: Downloads) -> None:
        """Renew the leases of downloads that are under way, and end those of others; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            for digest, lease in list(self._owned.items()):
                if downloads.find(digest) is None and digest not in self._settling:
                    task = loop.create_task(self._settle(files, digest, with_checksums=True))
                    self._settling[digest] = task
                    task.add_done_callback(partial(self._settled, digest))
                elif loop.time() - lease.renewed >= _RENEW_S:
                    await self._renew(digest, lease)

    async def close(self, files: BlobFiles) -> None:
        """End all leases, whose downloads have been stopped: followers take over those of unfinished blobs at once."""
        for task in self._settling.values():
            task.cancel()
        await asyncio.gather(*self._settling.values(), return_exceptions=True)
        for digest in list(self._owned):
            await self._settle(files, digest, with_checksums=False)

    async def checksums(self, digest: Digest) -> bytes | None:
        """Read the checksums of the chunks of a blob that nodes hold; None if they are not known."""
        with contextlib.suppress(LinkDown):
            found = await self._link.call(_GET, [self._keys.checksums(digest)])
            return found if found is None or len(found) % CHECKSUM_BYTES == 0 else None
        return None

    def _settled(self, digest: Digest, task: asyncio.Task[None]) -> None:
        self._settling.pop(digest, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("lease_not_settled", digest=str(digest), exc_info=task.exception())

    async def _settle(self, files: BlobFiles, digest: Digest, *, with_checksums: bool) -> None:
        """End a lease whose download has ended: other nodes find the blob here if it is held."""
        if with_checksums and (blob := files.open(digest)) is not None:
            with contextlib.closing(blob), contextlib.suppress(OSError, LinkDown):
                found = await asyncio.to_thread(checksums_of, blob.file, blob.size)
                await self._link.call(_PUT, [self._keys.checksums(digest)], found, _HELD_MS)
        is_held = files.size(digest) is not None
        await self._end(digest, f"held|{os.urandom(8).hex()}|{self._me.name}|" if is_held else "", _HELD_MS)

    async def _renew(self, digest: Digest, lease: _Lease) -> None:
        args = (lease.value, _TTL_MS, self._me.name, _HELD_MS, self._me.zone)
        try:
            renewed = await self._link.call(RENEW, self._names(digest), *args)
        except LinkDown:
            return
        lease.renewed = asyncio.get_running_loop().time()
        if not renewed:
            # Another node has replaced it: streams from upstream end, and this node follows that one.
            self._owned.pop(digest, None)
            log.info("lease_lost", digest=str(digest), consequence="this node follows the one that has taken over")

    async def _end(self, digest: Digest, value: str, ttl_ms: int) -> None:
        lease = self._owned.pop(digest, None)
        if lease is None:
            return
        with contextlib.suppress(LinkDown):
            await self._link.call(END, self._names(digest), lease.value, value, ttl_ms)

    def _names(self, digest: Digest) -> tuple[str, str, str]:
        """The lease of a blob in Redis, and the lists of those that have asked for it."""
        keys = self._keys
        return keys.lease(digest), keys.askers(digest), keys.askers_of_zone(digest, self._me.zone)


class _Lease:
    """A lease of this node.

    Attributes:
        value: in Redis.
        renewed: when, on the event loop's clock.
    """

    __slots__ = ("renewed", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.renewed = asyncio.get_running_loop().time()
