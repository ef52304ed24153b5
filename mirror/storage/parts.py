"""Parts: the descriptors that each manifest of a repository names, and the manifests that name a digest.

parts|REPOSITORY|MANIFEST               kind, digest and size of each part, labelled with the manifest
named|KIND|PART|REPOSITORY|MANIFEST     size of a part that this manifest names
complete                                no cached manifest lacks these rows

So a digest finds the manifests that name it, in one repository or in any, and no manifest has to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

from mirror.core.digest import Digest
from mirror.core.manifest import Manifest
from mirror.core.names import Repository
from mirror.storage.rows import MALFORMED, Kind, delete_if, parse_digest, parse_repository, paused
from mirror.storage.table import Table

# No image that runs has more. The parts of a longer manifest are not recorded: their grants are asked of upstream.
MAX_PARTS: Final = 5000

_COMPLETE: Final = "complete"


@dataclass(frozen=True, slots=True)
class Part:
    """A descriptor in a manifest.

    Attributes:
        kind: the endpoint that serves it.
        size: bytes.
    """

    kind: Kind
    digest: Digest
    size: int


def parts_of(manifest: Manifest) -> tuple[Part, ...]:
    """Return the parts of a manifest, each once. Its `subject` is none: a referrer does not contain what it refers to."""
    found: dict[tuple[Kind, Digest], Part] = {}
    for child in manifest.children:
        kind: Kind = "manifest" if child.is_manifest else "blob"
        found.setdefault((kind, child.digest), Part(kind, child.digest, child.size))
    for blob in manifest.blobs:
        found.setdefault(("blob", blob.digest), Part("blob", blob.digest, blob.size))
    return tuple(found.values())


class Parts:
    """The table of parts. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def label(self) -> None:
        """Label the rows that earlier versions have written."""
        self._table.label("parts|", "substr(key, 7 + instr(substr(key, 7), '|'))")

    def put(self, repository: Repository, manifest: Digest, parts: tuple[Part, ...]) -> None:
        """Record the parts of a manifest of a repository, unless there are more than MAX_PARTS."""
        if len(parts) > MAX_PARTS:
            return
        named = [(_named(part.kind, part.digest, repository, manifest), part.size, None) for part in parts]
        # All or none: the last row leads to the others.
        row = (f"parts|{repository}|{manifest}", [[part.kind, str(part.digest), part.size] for part in parts], str(manifest))
        self._table.set_many([*named, row])

    def of(self, repository: Repository, manifest: Digest) -> tuple[Part, ...] | None:
        """Return the parts of a manifest of a repository; None if they are not recorded."""
        value = self._table.get(f"parts|{repository}|{manifest}")
        try:
            return None if value is None else tuple(Part(_kind(k), Digest.parse(digest), int(size)) for k, digest, size in value)
        except MALFORMED:
            return None

    def has(self, repository: Repository, manifest: Digest) -> bool:
        """Whether the parts of a manifest of a repository are recorded."""
        return self._table.get(f"parts|{repository}|{manifest}") is not None

    def delete(self, repository: Repository, manifest: Digest) -> None:
        """Delete the parts of a manifest of a repository."""
        parts = self.of(repository, manifest) or ()
        keys = [_named(part.kind, part.digest, repository, manifest) for part in parts]
        self._table.delete_many([*keys, f"parts|{repository}|{manifest}"])

    def delete_everywhere(self, manifest: Digest) -> None:
        """Delete the parts of a manifest in every repository."""
        for key in self._table.labelled(str(manifest)):
            repository = parse_repository(key.split("|")[1])
            if repository is not None:
                self.delete(repository, manifest)

    def sizes_named(self, kind: Kind, repository: Repository, part: Digest) -> Iterator[tuple[Digest, int]]:
        """Yield the manifests of a repository that name a part, each with the bytes that it states for it."""
        prefix = f"named|{kind}|{part}|{repository}|"
        # The first one is nearly always enough.
        for key, size in chain(self._table.items_from(prefix, 1), self._table.items(prefix)):
            manifest = parse_digest(key.rpartition("|")[2])
            if manifest is not None and isinstance(size, int):
                yield manifest, size

    def naming(self, kind: Kind, repository: Repository, part: Digest) -> list[Digest]:
        """Return the manifests of a repository that name a part."""
        keys = self._table.keys_from(f"named|{kind}|{part}|{repository}|")
        return [digest for key in keys if (digest := parse_digest(key.rpartition("|")[2])) is not None]

    def leading_to(self, kind: Kind, repository: Repository, part: Digest, limit: int, depth: int) -> list[Digest]:
        """Return the manifests of a repository that name a part, and the indexes that lead to those, the nearest ones first.

        Args:
            limit: the most manifests; the others are left out.
            depth: how many steps an index may be away from the manifests that name the part.
        """
        found: dict[Digest, None] = {}
        level = [part]
        for _ in range(depth + 1):
            nearer, level = level, []
            for manifest in (manifest for digest in nearer for manifest in self.naming(kind, repository, digest)):
                if len(found) >= limit:
                    return list(found)
                if manifest not in found:
                    found[manifest] = None
                    level.append(manifest)
            kind = "manifest"
        return list(found)

    def naming_anywhere(self, kind: Kind, part: Digest) -> Iterator[tuple[Repository, Digest]]:
        """Yield the manifests that name a part, each with its repository; a page at a time, for there may be very many."""
        return self._manifests(f"named|{kind}|{part}|")

    @property
    def is_complete(self) -> bool:
        """Whether the parts of every cached manifest are recorded."""
        return self._table.get(_COMPLETE) is not None

    def complete(self) -> None:
        """Record that the parts of every cached manifest are recorded; from then on each manifest is put with its parts."""
        self._table.set(_COMPLETE, 1)

    def manifests(self) -> Iterator[tuple[Repository, Digest]]:
        """Yield every manifest whose parts are recorded."""
        return self._manifests("parts|")

    def _manifests(self, prefix: str) -> Iterator[tuple[Repository, Digest]]:
        for key in self._table.keys(prefix):
            *_, name, text = key.split("|")
            repository, digest = parse_repository(name), parse_digest(text)
            if repository is not None and digest is not None:
                yield repository, digest

    def drop(self, is_present: Callable[[Digest], bool], pause: Callable[[], bool] = lambda: False) -> int:
        """Delete the parts of manifests that are gone; returns of how many. The next pull records them again.

        Args:
            pause: called after every few hundred manifests; True ends the pass.
        """

        def is_gone(manifest: Digest) -> bool:
            return not is_present(manifest)

        return sum(
            delete_if(self._table.change, partial(is_gone, manifest), partial(self.delete, repository, manifest))
            for repository, manifest in paused(self.manifests(), pause)
        )


def _named(kind: Kind, part: Digest, repository: Repository, manifest: Digest) -> str:
    return f"named|{kind}|{part}|{repository}|{manifest}"


def _kind(text: str) -> Kind:
    if text == "manifest":
        return "manifest"
    if text == "blob":
        return "blob"
    raise ValueError(text)
