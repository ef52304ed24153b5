"""The index: what is known of tags, of what repositories hold, and of what upstream does not have.

tags        what a tag was found to name, when upstream said that there was none, and when a client asked for it last
manifests   that a repository holds a manifest
grants      that upstream gave a blob, or a manifest, to a repository; and that a registry gave it to any of its own
parts       what manifests name, and which manifests name something (`parts`)
absent      upstream's negative answers, for a short while
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord, after_check, is_superseded
from mirror.core.names import ImagePattern, Reference, Repository, Tag, is_glob, parse_reference
from mirror.core.popularity import NONE, Pulls
from mirror.errors import StorageError
from mirror.storage.attachments import Attachments
from mirror.storage.parts import Kind, Parts
from mirror.storage.table import Table

T = TypeVar("T")

# Seconds that a check of a tag may take: with all its content fetched, as long as that takes.
_LONGEST_CHECK = 86400.0
# Rows that are walked over in some milliseconds.
_PAUSE_EVERY = 250

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)

_ABSENT, _DENIED = 1, 2


@dataclass(frozen=True, slots=True)
class Held:
    """What a repository holds under a digest.

    Attributes:
        size: bytes.
    """

    media_type: str
    size: int


class Index:
    """Facts by name. Reads cost microseconds; writes and walks belong in a thread.

    Attributes:
        parts: what manifests name.
        attachments: signatures and other referrers of manifests.
    """

    def __init__(self, directory: str) -> None:
        self._tags = Table(f"{directory}/tags")
        self._manifests = Table(f"{directory}/manifests")
        self._grants = Table(f"{directory}/grants")
        self._absent = Table(f"{directory}/absent")
        self.parts = Parts(directory)
        self.attachments = Attachments(directory)
        self.label()
        if not self.parts.is_complete and not self._manifests.keys_from("manifest|", 1) and not self._tags.keys_from("tag|", 1):
            self.parts.complete()

    def label(self) -> None:
        """Have what earlier versions have put found by its digest, too; costs nothing once that is so."""
        self._tags.label("tag|", "json_extract(value, '$.digest')")
        self._manifests.label("manifest|", "substr(key, 10 + instr(substr(key, 10), '|'))")
        self.parts.label()

    def close(self) -> None:
        """Let go of the databases."""
        self.parts.close()
        self.attachments.close()
        for table in self._tables:
            table.close()

    @property
    def failures(self) -> int:
        """How many reads and writes have failed; while it stays the same, what was not found is not there."""
        return self.parts.failures + self.attachments.failures + sum(table.failures for table in self._tables)

    def change(self, work: Callable[[], T]) -> T | None:
        """Do something while no process writes down what a tag names or what a repository holds; None if that cannot be had.

        It must not take long: others wait for it, and give up.
        """
        return self._tags.change(lambda: self._manifests.change(lambda: self.parts.change(work)))

    @property
    def _tables(self) -> tuple[Table, ...]:
        return self._tags, self._manifests, self._grants, self._absent

    # ---- tags

    def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What is known of a tag."""
        return _tag_record(self._tags.get(f"tag|{repository}|{tag}"))

    def put_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """Remember what a tag names."""
        digest = str(record.digest)
        self._tags.set(f"tag|{repository}|{tag}", {**asdict(record), "digest": digest}, label=digest)

    def note_check(
        self, repository: Repository, tag: Tag, found: TagRecord, now: float
    ) -> tuple[TagRecord | None, TagRecord | None]:
        """Remember what a check has found, unless one that began later, in whatever process, has noted its own result.

        Args:
            found: its `checked` is when the check began.

        Returns:
            What was known before, and what counts now: what was found, too, if it could not be written down.
        """

        def work() -> tuple[TagRecord | None, TagRecord | None]:
            known = self.tag(repository, tag)
            if is_superseded(found.checked, self._refused(repository, tag), now):
                return known, known
            kept = after_check(known, found, now)
            if kept is None:
                return known, known
            self.put_tag(repository, tag, kept)
            return known, kept

        return self._tags.change(work) or (None, found)

    def note_refusal(
        self, repository: Repository, tag: Tag, asked: float, now: float, *, delete: bool, denied: bool = False
    ) -> bool:
        """Remember that upstream, asked at `asked`, had no such tag or did not grant it; False if a later check found it.

        Args:
            delete: forget what the tag was found to name.
            denied: it did not grant it, which counts until it does.
        """

        def work() -> bool:
            known = self.tag(repository, tag)
            if known is not None and is_superseded(asked, known.checked, now):
                return False
            if delete:
                self.delete_tag(repository, tag)
            elif denied and known is not None and not known.denied:
                self.put_tag(repository, tag, replace(known, denied=True))
            self._tags.set(f"refused|{repository}|{tag}", asked, _LONGEST_CHECK)
            return True

        # A table that cannot be had has nothing later.
        return self._tags.change(work) is not False

    def expire_tag(self, repository: Repository, tag: Tag, when: float) -> None:
        """Have a tag checked at its next pull, by a check that begins after `when`."""

        def work() -> None:
            known = self.tag(repository, tag)
            if known is not None:
                self.put_tag(repository, tag, replace(known, due=max(when, math.nextafter(known.checked, math.inf))))

        self._tags.change(work)

    def _refused(self, repository: Repository, tag: Tag) -> float:
        when = self._tags.get(f"refused|{repository}|{tag}")
        return when if isinstance(when, float) else 0.0

    def note_pull(self, repository: Repository, tag: Tag, when: float, times: int = 1) -> None:
        """Remember that clients asked, the last of them at `when`; kept apart, so that what the tag names cannot be overwritten.

        Of two processes that note at the same moment, one may not be counted: it only says what is popular.
        """
        pulls = self.pulls(repository, tag).plus(times, when)
        self._tags.set(f"pulled|{repository}|{tag}", [pulls.last, pulls.weight])

    def pulls(self, repository: Repository, tag: Tag) -> Pulls:
        """How often clients asked for a tag."""
        value = self._tags.get(f"pulled|{repository}|{tag}")
        try:
            last, weight = value
            return Pulls(float(last), float(weight))
        except _MALFORMED:
            return NONE

    def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag."""
        self._tags.delete(f"tag|{repository}|{tag}")
        self._tags.delete(f"pulled|{repository}|{tag}")

    def forget_tag(self, repository: Repository, tag: Tag, seen: TagRecord) -> bool:
        """Forget a tag, unless a check has found something since it was `seen`; whether it is forgotten."""

        def work() -> bool:
            known = self.tag(repository, tag)
            if known is not None and (known.digest, known.checked) != (seen.digest, seen.checked):
                return False
            self.delete_tag(repository, tag)
            return True

        return self._tags.change(work) is True

    def tags(self, pattern: ImagePattern | None = None) -> Iterator[tuple[Repository, Tag, TagRecord]]:
        """Every tag that is known, or those that a pattern matches, which costs little if that names one repository."""
        only = None if pattern is None else pattern.only_repository()
        for key, value in self._tag_rows(only, pattern):
            _, name = _split(key)
            record = _tag_record(value)
            if record is None or name is None or not isinstance(name[1], Tag):
                continue
            if pattern is not None and not pattern.matches(name[0], name[1], record.digest):
                continue
            pulled = self.pulls(name[0], name[1]).last
            yield name[0], name[1], replace(record, pulled=max(record.pulled, pulled))

    def _tag_rows(self, only: Repository | None, pattern: ImagePattern | None) -> Iterable[tuple[str, Any]]:
        if only is None or pattern is None:
            return self._tags.items("tag|")
        if pattern.tag is None or is_glob(pattern.tag):
            return self._tags.items(f"tag|{only}|")
        key = f"tag|{only}|{pattern.tag}"
        return [(key, self._tags.get(key))]

    def tag_names(self, repository: Repository) -> Iterator[Tag]:
        """The tags of a repository."""
        for key in self._tags.keys(f"tag|{repository}|"):
            _, name = _split(key)
            if name is not None and isinstance(name[1], Tag):
                yield name[1]

    def repositories(self) -> Iterator[tuple[Repository, Tag]]:
        """Every repository of which a tag is known, with the first of its tags."""
        for key in self._tags.groups_from("tag|"):
            _, name = _split(key)
            if name is not None and isinstance(name[1], Tag):
                yield name[0], name[1]

    def drop_tags(self, is_around: Callable[[Digest], bool], before: float) -> int:
        """Forget tags of which the manifest is gone and that nobody has asked for since `before`; returns how many.

        Until then they are good for answers that need no more than the digest.
        """
        dropped = 0
        for repository, tag, record in self.tags():
            if max(record.checked, record.pulled) < before and not is_around(record.digest):
                self.delete_tag(repository, tag)
                dropped += 1
        for key in self._tags.keys():  # noqa: SIM118 - no mapping
            kind, _, name = key.partition("|")
            if kind == "pulled" and self._tags.get(f"tag|{name}") is None:
                self._tags.delete(key)
        return dropped

    def tags_naming(self, repository: Repository, digest: Digest) -> list[Tag]:
        """The tags of a repository that were last found to name a digest."""
        return [tag for name, tag in self.tags_naming_anywhere(digest) if name == repository]

    def tags_naming_anywhere(self, digest: Digest) -> list[tuple[Repository, Tag]]:
        """The tags of all repositories that were last found to name a digest."""
        names = (_split(key)[1] for key in self._tags.labelled(str(digest)))
        return [(name[0], name[1]) for name in names if name is not None and isinstance(name[1], Tag)]

    # ---- what repositories hold

    def manifest(self, repository: Repository, digest: Digest) -> Held | None:
        """What a repository is known to hold as a manifest."""
        value = self._manifests.get(f"manifest|{repository}|{digest}")
        try:
            return None if value is None else Held(str(value["media_type"]), int(value["size"]))
        except _MALFORMED:
            return None

    def put_manifest(self, repository: Repository, digest: Digest, held: Held) -> None:
        """Remember that a repository holds a manifest."""
        self._manifests.set(f"manifest|{repository}|{digest}", asdict(held), label=str(digest))

    def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        """Forget that a repository holds a manifest, and what it names."""
        self.parts.delete(repository, digest)
        self.release_manifest(repository, digest)

    def is_newer(self, repository: Repository, digest: Digest, when: float) -> bool:
        """Whether that a repository holds a manifest was put since `when`, in seconds since the epoch; be it once more."""
        return (self._manifests.written_at(f"manifest|{repository}|{digest}") or 0.0) >= when

    def release_manifest(self, repository: Repository, digest: Digest) -> None:
        """Forget that a repository holds a manifest that others need: what it names stays known."""
        self._manifests.delete(f"manifest|{repository}|{digest}")

    def manifests(self, repository: Repository | None = None) -> Iterator[tuple[Repository, Digest]]:
        """Every manifest that repositories are known to hold, or one of them."""
        for key in self._manifests.keys("manifest|" if repository is None else f"manifest|{repository}|"):
            _, name = _split(key)
            if name is not None and isinstance(name[1], Digest):
                yield name[0], name[1]

    def holders(self, digest: Digest) -> list[Repository]:
        """The repositories that are known to hold a manifest."""
        names = (_split(key)[1] for key in self._manifests.labelled(str(digest)))
        return [name[0] for name in names if name is not None]

    def drop_manifests(self, is_around: Callable[[Digest], bool]) -> int:
        """Forget manifests that are gone; returns how many. They are learned again with the next pull."""
        return sum(
            self._drop_manifest(repository, digest, is_around) for repository, digest in self.manifests() if not is_around(digest)
        )

    def _drop_manifest(self, repository: Repository, digest: Digest, is_around: Callable[[Digest], bool]) -> bool:
        def work() -> bool:
            # Looked at again where nobody writes: what has come meanwhile is written down after this, and stays.
            if is_around(digest):
                return False
            self.delete_manifest(repository, digest)
            return True

        return self.change(work) is True

    # ---- grants

    def granted(self, kind: Kind, scope: str, digest: Digest) -> int | None:
        """The size in bytes of what upstream granted, -1 if it did not tell; None if it is not known to grant it.

        Args:
            scope: a repository; or a registry, for whether any of its repositories was given it.
        """
        value = self._grants.get(f"{kind}|{scope}|{digest}")
        return value if isinstance(value, int) else None

    def grant(self, kind: Kind, scope: str, digest: Digest, size: int) -> None:
        """Remember that upstream granted this within `scope`; `size` in bytes, -1 if it did not tell."""
        self._grants.set(f"{kind}|{scope}|{digest}", size)

    def revoke(self, kind: Kind, repository: Repository, digest: Digest) -> None:
        """Forget that upstream granted this to a repository, and that the repository holds it."""
        self._grants.delete(f"{kind}|{repository}|{digest}")
        if kind == "manifest":
            self.release_manifest(repository, digest)

    def drop_grants(self, is_around: Callable[[Digest], bool], pause: Callable[[], bool] = lambda: False) -> int:
        """Forget grants of what is no longer around; returns how many. They are learned again with the next pull.

        Args:
            pause: called every few hundred grants; True to have it left at that.
        """
        dropped = 0
        for number, key in enumerate(self._grants.keys(), 1):
            if not number % _PAUSE_EVERY and pause():
                break
            digest = _digest(key.rpartition("|")[2])
            if digest is None or not is_around(digest):
                dropped += self._drop_grant(key, digest, is_around)
        return dropped

    def _drop_grant(self, key: str, digest: Digest | None, is_around: Callable[[Digest], bool]) -> bool:
        def work() -> bool:
            if digest is not None and is_around(digest):
                return False
            self._grants.delete(key)
            return True

        return self._grants.change(work) is True

    # ---- negative answers

    def absent(self, kind: Kind, repository: Repository, reference: Reference) -> bool:
        """Whether upstream has lately said that it does not have this."""
        return self._absent.get(f"{kind}|{repository}|{reference}") is not None

    def denied(self, kind: Kind, repository: Repository, reference: Reference) -> bool:
        """Whether upstream has lately said that it does not grant this."""
        return bool(self._absent.get(f"{kind}|{repository}|{reference}") == _DENIED)

    def put_absent(
        self, kind: Kind, repository: Repository, reference: Reference, seconds: float, *, denied: bool = False
    ) -> None:
        """Remember upstream's no for a while."""
        if seconds > 0:
            self._absent.set(f"{kind}|{repository}|{reference}", _DENIED if denied else _ABSENT, seconds)

    def forget_absent(self, pattern: ImagePattern) -> None:
        """Forget upstream's noes about what a pattern covers."""
        only = pattern.only_repository()
        prefixes = [""] if only is None else [f"manifest|{only}|", f"blob|{only}|"]
        for key in (key for prefix in prefixes for key in self._absent.keys(prefix)):
            _, name = _split(key)
            if name is not None and pattern.matches_repository(name[0]):
                self._absent.delete(key)


class ReadCheck:
    """Tells whether what the index did not find is not there, for whoever removes what the index does not know to be needed."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._failures = index.failures

    def check(self) -> None:
        """Raises StorageError if a lookup has failed since this was made."""
        if self._index.failures != self._failures:
            raise StorageError("the index cannot be read: nobody knows what is needed", "io")


def _split(key: str) -> tuple[str, tuple[Repository, Reference] | None]:
    """The parts of a key `kind|registry/path|reference`."""
    kind, _, rest = key.partition("|")
    name, _, reference = rest.partition("|")
    registry, _, path = name.partition("/")
    try:
        return kind, (Repository.parse(registry, path), parse_reference(reference))
    except InvalidInput:
        return kind, None


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidInput:
        return None


def _tag_record(value: Any) -> TagRecord | None:
    try:
        return TagRecord(
            Digest.parse(value["digest"]),
            str(value["media_type"]),
            int(value["size"]),
            float(value["checked"]),
            float(value["changed"]),
            float(value["pulled"]),
            float(value.get("due") or 0.0),
            bool(value.get("denied")),
        )
    except _MALFORMED:
        return None
