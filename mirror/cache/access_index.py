"""Which repository may be served which digest: only those to which upstream has granted it.

A direct grant comes from upstream's answer to a GET or HEAD in that repository. An indirect grant comes from a manifest that
upstream gave for that repository and that names the digest. An indirect grant is valid only in a registry without an account, and
only for content that the registry has given to one of its repositories before: a published manifest may name content that
another registry keeps private.

Repositories share bytes in the store, but no grants.
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

from mirror.cache.generation_cache import GenerationCache
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.generation import Generation
from mirror.storage.index import Index
from mirror.storage.manifests import ManifestRecord
from mirror.storage.parts import MAX_PARTS, Part
from mirror.storage.rows import Kind
from mirror.storage.unwritten import UnwrittenFacts

UNKNOWN_SIZE: Final = -1

_MAX_ENTRIES: Final = 50_000
# The approximate memory of an entry.
_ENTRY_BYTES: Final = 400
# Stands for a size until the deletion reaches the index.
_REVOKED: Final = "revoked"
# A write usually takes a millisecond.
_WRITE_TIMEOUT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Grant:
    """The permission to serve a digest.

    Attributes:
        size: bytes as upstream reported, or UNKNOWN_SIZE.
        direct: upstream was asked for the digest in this repository; otherwise only a manifest names it.
    """

    size: int
    direct: bool


class AccessIndex:
    """Looks up and records grants. A lookup takes a microsecond from memory, some dozens from the index.

    Outlives reloads. Use it from the event loop's thread only.
    """

    def __init__(self, index: Index, generation: Generation, executor: Executor) -> None:
        self._index = index
        self._unwritten = UnwrittenFacts(executor)
        self._generation = generation
        self._cached: GenerationCache[Grant] = GenerationCache(generation, _MAX_ENTRIES)

    def find(self, kind: Kind, repository: Repository, digest: Digest, *, private: bool) -> Grant | None:
        """The grant of a digest to a repository, or None.

        Args:
            kind: the kind of the request. A grant of a manifest is not one of a blob.
            private: the registry is used with an account, so only a direct grant counts.
        """
        key = (kind, repository, digest)
        known = self._cached.get(key, 0.0)
        if known is not None and (known.direct or not private):
            return known
        generation = self._cached.generation()
        grant = self._direct(kind, repository, digest)
        if grant is None and not private:
            grant = self._named(kind, repository, digest)
        if grant is not None:
            self._cached.put(key, grant, _ENTRY_BYTES, math.inf, generation)
        return grant

    def size_named(self, repository: Repository, digest: Digest) -> int | None:
        """The bytes of a blob according to a recorded manifest of this repository; None if none names it."""
        size = self._unwritten.get(("named", "blob", repository, digest))
        return size if isinstance(size, int) else self._index.size_named("blob", repository, digest)

    def media_type(self, repository: Repository, digest: Digest) -> str | None:
        """The media type that upstream gave for a manifest of a repository, or None."""
        held = self._unwritten.get(("held", repository, digest)) or self._index.manifests.get(repository, digest)
        return held.media_type if isinstance(held, ManifestRecord) else None

    def record_grant(self, kind: Kind, repository: Repository, digest: Digest, size: int, *, force: bool = False) -> None:
        """Record that upstream itself granted a digest to a repository.

        Args:
            size: bytes, or UNKNOWN_SIZE.
            force: write also what is recorded already; see `repeat_grant`.
        """
        missing = [s for s in (repository.registry, str(repository)) if force or not self._has(kind, s, digest, size)]
        for scope in missing:
            write = partial(self._index.grants.put, kind, scope, digest, size)
            self._unwritten.put(("grant", kind, scope, digest), size, write)
        if missing:
            self._cache((kind, repository, digest), Grant(size, direct=True))

    def repeat_grant(self, kind: Kind, repository: Repository, digest: Digest, size: int) -> None:
        """Record a grant again that the caller recorded before, unless upstream has revoked it since.

        A concurrent purge may delete the rows of content that was not stored yet, so who has stored it repeats them.

        Args:
            size: bytes, which may have been unknown or wrong.
        """
        generation = self._cached.generation()
        for scope in (repository.registry, str(repository)):
            # Beside the grant itself, which may wait to be written, and is written in any case.
            write = partial(self._index.grants.repeat, kind, scope, digest, size)
            self._unwritten.put(("repeated grant", kind, scope, digest), size, write)
        if not self._is_revoked(kind, repository, digest):
            # Another process changes the generation once it has revoked it.
            self._cached.put((kind, repository, digest), Grant(size, direct=True), _ENTRY_BYTES, math.inf, generation)

    def record_published(self, kind: Kind, registry: str, digest: Digest, size: int) -> None:
        """Record that a registry has given a digest to one of its repositories; see `record_grant`."""
        if not self._has(kind, registry, digest, size):
            write = partial(self._index.grants.put, kind, registry, digest, size)
            self._unwritten.put(("grant", kind, registry, digest), size, write)

    def revoke_grant(self, kind: Kind, repository: Repository, digest: Digest) -> None:
        """Record that upstream no longer grants a digest to a repository; cheap if no direct grant is known."""
        scope = str(repository)
        remembered = self._cached.get((kind, repository, digest), 0.0)
        if self._granted(kind, scope, digest) is None and not (remembered is not None and remembered.direct):
            return

        def write() -> None:
            self._index.revoke(kind, repository, digest)
            # Other processes may have cached the grant meanwhile.
            self._generation.change()

        self._unwritten.put_now(("grant", kind, scope, digest), _REVOKED, write)
        self._generation.change()

    def record_manifest(
        self, repository: Repository, digest: Digest, held: ManifestRecord, parts: tuple[Part, ...], *, force: bool = False
    ) -> None:
        """Record that a repository holds a manifest, and the parts that it names, unless upstream has revoked the manifest.

        Args:
            force: write also what is recorded already; see `repeat_grant`.
        """
        if self._is_revoked("manifest", repository, digest):
            return
        if force or (self._unwritten.get(("held", repository, digest)) or self._index.manifests.get(repository, digest)) is None:
            write = partial(self._index.record_held, repository, digest, held)
            self._unwritten.put(("held", repository, digest), held, write)
        key = ("parts", repository, digest)
        if len(parts) <= MAX_PARTS and (force or not (self._unwritten.get(key) or self._index.parts.has(repository, digest))):
            self._unwritten.put(key, parts, partial(self._index.parts.put, repository, digest, parts))
            for part in parts:
                self._unwritten.put(("named", part.kind, repository, part.digest), part.size)
        self._cache(("held", repository, digest), Grant(held.size, direct=True))

    def holds(self, repository: Repository, digest: Digest) -> bool:
        """Whether `record_manifest` was recently called for a manifest of a repository."""
        return self._cached.get(("held", repository, digest), 0.0) is not None

    async def wait_written(self, timeout: float = _WRITE_TIMEOUT_S) -> bool:
        """Wait until other processes can see what has been recorded; False if they cannot after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(self._unwritten.marked())
            return True
        return False

    def correct_size(self, repository: Repository, digest: Digest, grant: Grant, size: int) -> None:
        """Record the size of a verified blob where upstream or a manifest reported another one."""
        if grant.direct:
            self.repeat_grant("blob", repository, digest, size)
        else:
            self._cache(("blob", repository, digest), Grant(size, direct=False))

    def _direct(self, kind: Kind, repository: Repository, digest: Digest) -> Grant | None:
        size = self._granted(kind, str(repository), digest)
        return None if size is None else Grant(size, direct=True)

    def _named(self, kind: Kind, repository: Repository, digest: Digest) -> Grant | None:
        if self._granted(kind, repository.registry, digest) is None:
            return None
        size = self._unwritten.get(("named", kind, repository, digest))
        if size is None:
            size = self._index.size_named(kind, repository, digest)
        if size is None and kind == "manifest" and (held := self._index.manifests.get(repository, digest)) is not None:
            size = held.size
        return Grant(size, direct=False) if isinstance(size, int) else None

    def _granted(self, kind: Kind, scope: str, digest: Digest) -> int | None:
        size = self._unwritten.get(("grant", kind, scope, digest))
        if size == _REVOKED:
            return None
        return size if isinstance(size, int) else self._index.grants.get(kind, scope, digest)

    def _is_revoked(self, kind: Kind, repository: Repository, digest: Digest) -> bool:
        size = self._unwritten.get(("grant", kind, str(repository), digest))
        return size == _REVOKED if size is not None else self._index.grants.is_revoked(kind, str(repository), digest)

    def _has(self, kind: Kind, scope: str, digest: Digest, size: int) -> bool:
        known = self._granted(kind, scope, digest)
        return known is not None and size in (known, UNKNOWN_SIZE)

    def _cache(self, key: Hashable, grant: Grant) -> None:
        self._cached.put(key, grant, _ENTRY_BYTES, math.inf, self._cached.generation())
