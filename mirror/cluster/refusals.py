"""Refusals that all nodes share: of several nodes of one scope, only one asks upstream for what it lacks or denies."""

from __future__ import annotations

import contextlib

from mirror.cluster.events import MAX_EVENTS
from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.core.names import Reference, Repository, Tag
from mirror.errors import AccessDenied, NotFound, UpstreamRefusal
from mirror.storage.rows import Kind

_ABSENT, _DENIED = b"1", b"2"

# KEYS: refusal, tag or nothing, events. ARGV: value, TTL in ms, fields of the event.
_PUT = Script("""
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if KEYS[3] then redis.call('DEL', KEYS[3]) end
if ARGV[1] == '2' then redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'kind', 'denied', unpack(ARGV, 4)) end
""")
_GET = Script("return redis.call('GET', KEYS[1])")


def refusal(value: bytes, what: str) -> UpstreamRefusal | None:
    """Return the exception for a value in Redis; None for a value of another version."""
    if value == _DENIED:
        return AccessDenied(f"upstream has lately said to another node that it does not grant {what}")
    if value == _ABSENT:
        return NotFound(f"upstream has lately said to another node that it does not have {what}")
    return None


class Refusals:
    """Reads and writes refusals in Redis.

    Args:
        me: the name of this node.
    """

    def __init__(self, link: Link, keys: Keys, me: str) -> None:
        self._link = link
        self._keys = keys
        self._me = me

    async def share(self, kind: Kind, repository: Repository, reference: Reference, error: UpstreamRefusal, ttl_s: float) -> None:
        """Write that upstream has refused a reference, which counts for `ttl_s` seconds; the record of a tag is deleted."""
        if ttl_s <= 0:
            return
        keys = [self._keys.refusal(kind, repository, reference), self._keys.events]
        if isinstance(reference, Tag):
            keys.append(self._keys.tag(repository, reference))
        value = _DENIED if isinstance(error, AccessDenied) else _ABSENT
        scope = self._keys.scope(repository.registry)
        event = ("node", self._me, "scope", scope, "name", repository.path, "reference", str(reference), "of", kind)
        with contextlib.suppress(LinkDown):
            await self._link.call(_PUT, keys, value, max(1, round(ttl_s * 1000)), MAX_EVENTS, *event)

    async def raise_if_refused(self, kind: Kind, repository: Repository, reference: Reference) -> None:
        """Raise NotFound or AccessDenied if upstream has lately refused a reference to another node."""
        with contextlib.suppress(LinkDown):
            found = await self._link.call(_GET, [self._keys.refusal(kind, repository, reference)])
            error = None if found is None else refusal(found, f"{repository} {reference}")
            if error is not None:
                raise error
