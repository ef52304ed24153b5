"""Manifests that all nodes share: one node fetches a manifest, and the others read its bytes from Redis and verify them.

The bytes of a large one stay at the node that has fetched it, which the value in Redis names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from mirror.cluster.failures import decode_failure, encode_failure
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.cluster.turns import attempts
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import Manifest, ManifestKind, parse_manifest
from mirror.core.names import Repository
from mirror.download.source import BlobRange
from mirror.errors import UpstreamError

log = structlog.get_logger(__name__)

_MAX_BYTES = 256 << 10
# Begins what is in the place of the bytes of a large manifest: the node, the registry and the repository.
_AT_NODE = b"@"
_TTL_MS = 3_600_000
# A node whose turn it is needs as long as upstream does; after this the next one fetches.
_TURN_MS, _TIMEOUT_S = 5_000, 6.0
_FAILED_MS = 3_000

# KEYS: manifest, turn. ARGV: token, TTL.
_TAKE = Script("""
local found = redis.call('GET', KEYS[1])
if found then return {'found', found} end
local turn = redis.call('GET', KEYS[2])
if not turn then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  return {'turn'}
end
if string.sub(turn, 1, 7) == 'failed|' then return {'failed', string.sub(turn, 8)} end
return {'wait'}
""")
_GET = Script("return redis.call('GET', KEYS[1])")
_PUT = Script("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")
# KEYS: turn. ARGV: token, the failure that replaces it, or nothing.
_END = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
""")


@dataclass
class Turn:
    """What a turn has brought.

    Attributes:
        found: the manifest that another node has fetched.
        fetched: the manifest that the holder of the turn has fetched; the holder sets it.
    """

    found: Manifest | None = None
    fetched: tuple[str, bytes] | None = None


ReadFromNode = Callable[[str, BlobRange], Awaitable[bytes | None]]
"""Reads a whole manifest from a node; None if the node does not send it."""


class SharedManifests:
    """The manifests of a cluster by digest.

    Args:
        me: this node.
        read: reads a large manifest.
    """

    def __init__(self, link: Link, keys: Keys, me: Identity, read: ReadFromNode) -> None:
        self._link = link
        self._keys = keys
        self._me = me
        self._read = read

    @contextlib.asynccontextmanager
    async def turn(self, repository: Repository, digest: Digest) -> AsyncIterator[Turn]:
        """Wait until a manifest can be read, or until it is this node's turn to fetch it. Without Redis that is at once.

        Raises:
            UpstreamError: another node has asked upstream a moment ago, and upstream failed.
        """
        scope = self._keys.scope(repository.registry)
        token = f"{os.urandom(8).hex()}|{scope}"
        turn = Turn(found=await self._find(digest, scope, token))
        failure = ""
        try:
            yield turn
        except UpstreamError as error:
            encoded = encode_failure(error)
            failure = "" if encoded is None else f"failed|{scope}|{encoded}"
            raise
        finally:
            if turn.found is None:
                await self._finish(repository, digest, turn, (token, failure))

    async def find(self, digest: Digest) -> Manifest | None:
        """Read a manifest that a node has fetched within the last hour, or return None."""
        with contextlib.suppress(LinkDown):
            value = await self._link.call(_GET, [self._keys.manifest(digest)])
            return None if value is None else await self._parsed(value, digest)
        return None

    async def _find(self, digest: Digest, scope: str, token: str) -> Manifest | None:
        keys = [self._keys.manifest(digest), self._keys.manifest_turn(digest)]
        async for _ in attempts(_TIMEOUT_S):
            try:
                kind, *rest = await self._link.call(_TAKE, keys, token, _TURN_MS)
            except LinkDown:
                return None
            if kind == b"found":
                return await self._parsed(rest[0], digest)
            if kind == b"turn":
                return None
            if kind == b"failed":
                whose, _, text = rest[0].decode(errors="replace").partition("|")
                failure = decode_failure(text)
                if whose != scope or failure is None:
                    return None
                raise failure
        return None

    async def _finish(self, repository: Repository, digest: Digest, turn: Turn, end: tuple[str, str]) -> None:
        """Share what was fetched, and end the turn, whose token is named, with a failure or none."""
        with contextlib.suppress(LinkDown):
            if turn.fetched is not None:
                media_type, raw = turn.fetched
                if len(raw) > _MAX_BYTES:
                    raw = _AT_NODE + f"{self._me.name}\n{repository.registry}\n{repository.path}".encode()
                await self._link.call(_PUT, [self._keys.manifest(digest)], media_type.encode() + b"\n" + raw, _TTL_MS)
            await self._link.call(_END, [self._keys.manifest_turn(digest)], *end, _FAILED_MS)

    async def _parsed(self, value: bytes, digest: Digest) -> Manifest | None:
        """The manifest of a value in Redis; None if it is damaged, or its node does not send it: then it is fetched."""
        media_type, _, raw = value.partition(b"\n")
        try:
            if raw.startswith(_AT_NODE):
                node, registry, path = raw.removeprefix(_AT_NODE).decode().split("\n")
                found = await self._read(node, BlobRange(Repository.parse(registry, path), digest, 0, None))
                if found is None:
                    return None
                raw = found
            manifest = parse_manifest(raw, media_type.decode(), digest)
        except (InvalidInput, ValueError) as error:
            log.error("shared_manifest_damaged", digest=str(digest), cause=str(error), consequence="it is fetched from upstream")
            return None
        # The digest of schema 1 is not that of its bytes, so nothing would verify them.
        return None if manifest.kind is ManifestKind.SCHEMA1 else manifest
