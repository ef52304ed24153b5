"""Who may read what: a digest is served for a repository only if upstream gave it there.

Either upstream itself was asked in that repository, for the bytes or by HEAD (a direct grant). Or a manifest that upstream gave
for that repository names it. A manifest's word counts only in a registry without an account, and only for what that registry has
given to one of its repositories before: anybody may write a manifest that names what another registry keeps private.

Bytes in the store are shared; rights never are.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Final

from mirror.cache.manifest_cache import Memory
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.generation import Generation
from mirror.storage.index import Held, Index
from mirror.storage.parts import MAX_PARTS, Kind, Part
from mirror.storage.unwritten import UnwrittenFacts

UNKNOWN_SIZE: Final = -1

_MAX_ENTRIES: Final = 50_000
# What an entry takes in memory, roughly.
_ENTRY_BYTES: Final = 400
# In the place of a size, as long as the index still has one.
_REVOKED: Final = "revoked"
# Usually it takes a millisecond.
_WRITE_TIMEOUT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Grant:
    """Why a digest may be served.

    Attributes:
        size: bytes by upstream's word, UNKNOWN_SIZE if it did not tell.
        direct: upstream itself was asked for it in this repository; else only a manifest names it.
    """

    size: int
    direct: bool


class AccessIndex:
    """Looks up and records grants. A lookup costs a microsecond from memory, and some dozens from the index.

    Outlives reloads. For the event loop's thread.
    """

    def __init__(self, index: Index, generation: Generation, executor: Executor) -> None:
        self._index = index
        self._unwritten = UnwrittenFacts(executor)
        self._generation = generation
        self._memory: Memory[Grant] = Memory(generation, _MAX_ENTRIES)

    def is_authorized(self, kind: Kind, repository: Repository, digest: Digest, *, private: bool) -> bool:
        """Whether upstream is known to grant a digest to a repository.

        Args:
            kind: as what it is asked for. What is only known as a manifest is no blob.
            private: the registry is used with an account, so that a manifest's word is not enough.
        """
        return self.find(kind, repository, digest, private=private) is not None

    def find(self, kind: Kind, repository: Repository, digest: Digest, *, private: bool) -> Grant | None:
        """The grant of a digest to a repository, None if none is known. See `is_authorized`."""
        key = (kind, repository, digest)
        known = self._memory.get(key, 0.0)
        if known is not None and (known.direct or not private):
            return known
        generation = self._memory.generation()
        grant = self._direct(kind, repository, digest)
        if grant is None and not private:
            grant = self._named(kind, repository, digest)
        if grant is not None:
            self._memory.put(key, grant, _ENTRY_BYTES, math.inf, generation)
        return grant

    def size_named(self, repository: Repository, digest: Digest) -> int | None:
        """Bytes that a blob has by the word of a manifest of this repository; None if no recorded manifest names it."""
        size = self._unwritten.get(("named", "blob", repository, digest))
        return size if isinstance(size, int) else self._index.parts.size_named("blob", repository, digest)

    def media_type(self, repository: Repository, digest: Digest) -> str | None:
        """The media type that upstream gave a manifest of a repository; None if that is not known."""
        held = self._unwritten.get(("held", repository, digest)) or self._index.manifest(repository, digest)
        return held.media_type if isinstance(held, Held) else None

    def record_grant(self, kind: Kind, repository: Repository, digest: Digest, size: int, *, anew: bool = False) -> None:
        """Record that upstream itself granted a digest to a repository.

        Args:
            size: bytes, or UNKNOWN_SIZE.
            anew: even if it is recorded. What is recorded of content that is not held may be dropped in this moment, so whoever
                has stored the content records it anew.
        """
        missing = [s for s in (repository.registry, str(repository)) if anew or not self._has(kind, s, digest, size)]
        for scope in missing:
            write = partial(self._index.grant, kind, scope, digest, size)
            self._unwritten.put(("grant", kind, scope, digest), size, write)
        if missing:
            self._remember((kind, repository, digest), Grant(size, direct=True))

    def revoke_grant(self, kind: Kind, repository: Repository, digest: Digest) -> None:
        """Record that upstream does not grant a digest to a repository any more; costs little if it is not known to have."""
        scope = str(repository)
        remembered = self._memory.get((kind, repository, digest), 0.0)
        if self._granted(kind, scope, digest) is None and not (remembered is not None and remembered.direct):
            return

        def write() -> None:
            self._index.revoke(kind, repository, digest)
            # Other processes may have looked meanwhile.
            self._generation.change()

        self._unwritten.put(("grant", kind, scope, digest), _REVOKED, write)
        self._generation.change()

    def record_manifest(
        self, repository: Repository, digest: Digest, held: Held, parts: tuple[Part, ...], *, anew: bool = False
    ) -> None:
        """Record that a repository holds a manifest that upstream grants it, and what that names. See `record_grant`."""
        if anew or (self._unwritten.get(("held", repository, digest)) or self._index.manifest(repository, digest)) is None:
            write = partial(self._index.put_manifest, repository, digest, held)
            self._unwritten.put(("held", repository, digest), held, write)
        key = ("parts", repository, digest)
        if len(parts) <= MAX_PARTS and (anew or not (self._unwritten.get(key) or self._index.parts.has(repository, digest))):
            self._unwritten.put(key, parts, partial(self._index.parts.put, repository, digest, parts))
            for part in parts:
                self._unwritten.put(("named", part.kind, repository, part.digest), part.size)
        self._remember(("held", repository, digest), Grant(held.size, direct=True))

    def holds(self, repository: Repository, digest: Digest) -> bool:
        """Whether `record_manifest` was lately called for a manifest of a repository."""
        return self._memory.get(("held", repository, digest), 0.0) is not None

    async def written(self) -> None:
        """Wait until other processes can see what has been recorded, but not for a disk that hangs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await asyncio.wrap_future(self._unwritten.marked())

    def correct_size(self, repository: Repository, digest: Digest, grant: Grant, size: int) -> None:
        """Record how many bytes a blob has, as its digest has told, where upstream or a manifest says otherwise."""
        if grant.direct:
            self.record_grant("blob", repository, digest, size)
        else:
            self._remember(("blob", repository, digest), Grant(size, direct=False))

    def _direct(self, kind: Kind, repository: Repository, digest: Digest) -> Grant | None:
        size = self._granted(kind, str(repository), digest)
        return None if size is None else Grant(size, direct=True)

    def _named(self, kind: Kind, repository: Repository, digest: Digest) -> Grant | None:
        if self._granted(kind, repository.registry, digest) is None:
            return None
        size = self._unwritten.get(("named", kind, repository, digest))
        if size is None:
            size = self._index.parts.size_named(kind, repository, digest)
        if size is None and kind == "manifest" and (held := self._index.manifest(repository, digest)) is not None:
            size = held.size
        return Grant(size, direct=False) if isinstance(size, int) else None

    def _granted(self, kind: Kind, scope: str, digest: Digest) -> int | None:
        size = self._unwritten.get(("grant", kind, scope, digest))
        if size == _REVOKED:
            return None
        return size if isinstance(size, int) else self._index.granted(kind, scope, digest)

    def _has(self, kind: Kind, scope: str, digest: Digest, size: int) -> bool:
        known = self._granted(kind, scope, digest)
        return known is not None and size in (known, UNKNOWN_SIZE)

    def _remember(self, key: Hashable, grant: Grant) -> None:
        self._memory.put(key, grant, _ENTRY_BYTES, math.inf, self._memory.generation())
