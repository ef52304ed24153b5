"""What manifests name: the parts of each manifest of a repository, and the manifests that name a part.

parts|REPOSITORY|MANIFEST               what this manifest names: kind, digest and size of each part
named|KIND|PART|REPOSITORY|MANIFEST     that it names this part
complete                                that no held manifest lacks these rows

So the manifests that name a part, in one repository or in any, are looked up by its digest, without reading a manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import Manifest
from mirror.core.names import Repository
from mirror.storage.table import Table

# A digest can be asked for as either, and may exist as one and not as the other.
Kind = Literal["manifest", "blob"]

# A manifest that names more is none that anybody runs. What such a one names is found out by asking upstream.
MAX_PARTS: Final = 5000

_COMPLETE: Final = "complete"

T = TypeVar("T")

# Rows that are walked over in some milliseconds.
_PAUSE_EVERY: Final = 250

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, InvalidInput)


@dataclass(frozen=True, slots=True)
class Part:
    """What a manifest names.

    Attributes:
        kind: what it is to be asked for as.
        size: bytes.
    """

    kind: Kind
    digest: Digest
    size: int


def parts_of(manifest: Manifest) -> tuple[Part, ...]:
    """The parts of a manifest, each once. Its `subject` is none: a referrer does not contain what it refers to."""
    found: dict[tuple[Kind, Digest], Part] = {}
    for child in manifest.children:
        kind: Kind = "manifest" if child.is_manifest else "blob"
        found.setdefault((kind, child.digest), Part(kind, child.digest, child.size))
    for blob in manifest.blobs:
        found.setdefault(("blob", blob.digest), Part("blob", blob.digest, blob.size))
    return tuple(found.values())


class Parts:
    """A table of the index. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/parts")

    def close(self) -> None:
        """Close the database."""
        self._table.close()

    @property
    def failures(self) -> int:
        """How many reads and writes have failed."""
        return self._table.failures

    def change(self, work: Callable[[], T]) -> T | None:
        """Do something while no process writes here; None if that cannot be had."""
        return self._table.change(work)

    def label(self) -> None:
        """Have what earlier versions have put found by the manifest alone, too."""
        self._table.label("parts|", "substr(key, 7 + instr(substr(key, 7), '|'))")

    def put(self, repository: Repository, manifest: Digest, parts: tuple[Part, ...]) -> None:
        """Record what a manifest of a repository names; not if it names more than MAX_PARTS."""
        if len(parts) > MAX_PARTS:
            return
        named = [(_named(part.kind, part.digest, repository, manifest), part.size, None) for part in parts]
        # The row by which the others are found comes with them, or not at all.
        row = (f"parts|{repository}|{manifest}", [[part.kind, str(part.digest), part.size] for part in parts], str(manifest))
        self._table.set_many([*named, row])

    def of(self, repository: Repository, manifest: Digest) -> tuple[Part, ...] | None:
        """What a manifest of a repository names; None if that is not recorded."""
        value = self._table.get(f"parts|{repository}|{manifest}")
        try:
            return None if value is None else tuple(Part(_kind(k), Digest.parse(digest), int(size)) for k, digest, size in value)
        except _MALFORMED:
            return None

    def has(self, repository: Repository, manifest: Digest) -> bool:
        """Whether it is recorded what a manifest of a repository names."""
        return self._table.get(f"parts|{repository}|{manifest}") is not None

    def delete(self, repository: Repository, manifest: Digest) -> None:
        """Forget what a manifest of a repository names."""
        parts = self.of(repository, manifest) or ()
        keys = [_named(part.kind, part.digest, repository, manifest) for part in parts]
        self._table.delete_many([*keys, f"parts|{repository}|{manifest}"])

    def delete_everywhere(self, manifest: Digest) -> None:
        """Forget what a manifest names, in whatever repository."""
        for key in self._table.labelled(str(manifest)):
            repository = _repository(key.split("|")[1])
            if repository is not None:
                self.delete(repository, manifest)

    def size_named(self, kind: Kind, repository: Repository, part: Digest) -> int | None:
        """Bytes that a part has by the word of a manifest of this repository; None if no recorded manifest names it."""
        for _, size in self._table.items_from(f"named|{kind}|{part}|{repository}|", 1):
            return size if isinstance(size, int) else None
        return None

    def naming(self, kind: Kind, repository: Repository, part: Digest) -> list[Digest]:
        """The manifests of a repository that name a part."""
        keys = self._table.keys_from(f"named|{kind}|{part}|{repository}|")
        return [digest for key in keys if (digest := _digest(key.rpartition("|")[2])) is not None]

    def naming_anywhere(self, kind: Kind, part: Digest, most: int = -1) -> list[tuple[Repository, Digest]]:
        """The manifests that name a part, each with the repository that it is known in; at most `most`, -1 for all."""
        found = []
        for key in self._table.keys_from(f"named|{kind}|{part}|", most):
            *_, name, text = key.split("|")
            repository, digest = _repository(name), _digest(text)
            if repository is not None and digest is not None:
                found.append((repository, digest))
        return found

    def each_naming(self, kind: Kind, part: Digest) -> Iterator[tuple[Repository, Digest]]:
        """Like `naming_anywhere`, a page at a time: for whoever needs the first that will do, of very many."""
        for key in self._table.keys(f"named|{kind}|{part}|"):
            *_, name, text = key.split("|")
            repository, digest = _repository(name), _digest(text)
            if repository is not None and digest is not None:
                yield repository, digest

    @property
    def is_complete(self) -> bool:
        """Whether `complete` was called: the parts of every manifest that is held are recorded."""
        return self._table.get(_COMPLETE) is not None

    def complete(self) -> None:
        """Note that the parts of every manifest that is held are recorded; from then on each comes with its parts."""
        self._table.set(_COMPLETE, 1)

    def manifests(self) -> Iterator[tuple[Repository, Digest]]:
        """Every manifest of which the parts are recorded."""
        for key in self._table.keys("parts|"):
            _, name, text = key.split("|")
            repository, digest = _repository(name), _digest(text)
            if repository is not None and digest is not None:
                yield repository, digest

    def drop(self, is_around: Callable[[Digest], bool], pause: Callable[[], bool] = lambda: False) -> int:
        """Forget the parts of manifests that are gone; returns of how many. They are recorded again with the next pull.

        Args:
            pause: called every few hundred manifests; True to have it left at that.
        """
        dropped = 0
        for number, (repository, digest) in enumerate(self.manifests(), 1):
            if not number % _PAUSE_EVERY and pause():
                break
            if not is_around(digest):
                dropped += self._drop(repository, digest, is_around)
        return dropped

    def _drop(self, repository: Repository, manifest: Digest, is_around: Callable[[Digest], bool]) -> bool:
        def work() -> bool:
            # Looked at again where nobody writes: what has come meanwhile is written down after this, and stays.
            if is_around(manifest):
                return False
            self.delete(repository, manifest)
            return True

        return self._table.change(work) is True


def _named(kind: Kind, part: Digest, repository: Repository, manifest: Digest) -> str:
    return f"named|{kind}|{part}|{repository}|{manifest}"


def _kind(text: str) -> Kind:
    if text == "manifest":
        return "manifest"
    if text == "blob":
        return "blob"
    raise ValueError(text)


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidInput:
        return None


def _repository(name: str) -> Repository | None:
    registry, _, path = name.partition("/")
    try:
        return Repository.parse(registry, path)
    except InvalidInput:
        return None
