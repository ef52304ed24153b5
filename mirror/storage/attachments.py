"""What upstream has said of signatures and other referrers of manifests, so that it can be said again while upstream is out.

list|REPOSITORY|SUBJECT|PAGE     a list of referrers as upstream gave it, or that upstream has no such list
absent|REPOSITORY|SUBJECT|TAG    that there is no such tag, of those in which signatures are looked for
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import Repository, Tag
from mirror.core.signatures import subject_of
from mirror.storage.table import Table

# Longer lists are kept in memory only.
_MAX_BODY: Final = 256 << 10
# Clients may ask for each type of artifacts apart.
_MAX_LISTS: Final = 50
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class KeptList:
    """A list of referrers.

    Attributes:
        body: None if upstream has said that it has no such list.
        asked: seconds since the epoch.
    """

    body: bytes | None
    links: tuple[str, ...]
    filters: str | None
    asked: float


class Attachments:
    """A table of the index. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/attachments")

    def close(self) -> None:
        """Close the database."""
        self._table.close()

    @property
    def failures(self) -> int:
        """How many reads and writes have failed."""
        return self._table.failures

    def put_list(self, repository: Repository, subject: Digest, page: str, kept: KeptList) -> None:
        """Keep a list; not one that is very long, nor more than some of one manifest."""
        key, prefix = f"list|{repository}|{subject}|{page}", f"list|{repository}|{subject}|"
        if kept.body is not None and len(kept.body) > _MAX_BODY:
            return
        if self._table.get(key) is None and len(self._table.keys_from(prefix, _MAX_LISTS)) == _MAX_LISTS:
            return
        body = None if kept.body is None else kept.body.decode(errors="replace")
        self._table.set(key, {"body": body, "links": list(kept.links), "filters": kept.filters, "asked": kept.asked})

    def list(self, repository: Repository, subject: Digest, page: str) -> KeptList | None:
        """A list that was kept, or None."""
        return _kept_list(self._table.get(f"list|{repository}|{subject}|{page}"))

    def delete_list(self, repository: Repository, subject: Digest, page: str) -> None:
        """Forget a list."""
        if self.list(repository, subject, page) is not None:
            self._table.delete(f"list|{repository}|{subject}|{page}")

    def put_absent(self, repository: Repository, tag: Tag, asked: float) -> None:
        """Keep that upstream has no such tag; only of a tag in which signatures are looked for."""
        subject = subject_of(tag)
        if subject is not None:
            self._table.set(f"absent|{repository}|{subject}|{tag}", asked)

    def absent_since(self, repository: Repository, tag: Tag) -> float | None:
        """When upstream said last that it has no such tag, in seconds since the epoch; None if it did not."""
        subject = subject_of(tag)
        value = None if subject is None else self._table.get(f"absent|{repository}|{subject}|{tag}")
        return float(value) if isinstance(value, int | float) else None

    def forget_absent(self, repository: Repository, tag: Tag) -> None:
        """Forget that there is no such tag."""
        subject = subject_of(tag)
        if subject is not None and self.absent_since(repository, tag) is not None:
            self._table.delete(f"absent|{repository}|{subject}|{tag}")

    def referrers(self, repository: Repository, subject: Digest) -> set[Digest]:
        """The manifests that kept lists name."""
        found: set[Digest] = set()
        for _, value in self._table.items_from(f"list|{repository}|{subject}|"):
            kept = _kept_list(value)
            if kept is not None and kept.body is not None:
                found.update(referrers_in(kept.body))
        return found

    def delete(self, repository: Repository, subject: Digest) -> None:
        """Forget everything that is about a manifest."""
        prefixes = (f"{kind}|{repository}|{subject}|" for kind in ("list", "absent"))
        self._table.delete_many([key for prefix in prefixes for key in self._table.keys_from(prefix)])

    def drop(self, is_held: Callable[[Repository, Digest], bool], before: float) -> int:
        """Forget what was said before a time about manifests that their repositories do not hold; returns how many rows."""
        dropped = 0
        for key, value in self._table.items():
            _, name, subject, *_ = [*key.split("|"), "", "", ""]
            asked = value if isinstance(value, int | float) else getattr(_kept_list(value), "asked", 0.0)
            repository, digest = _repository(name), _digest(subject)
            if repository is None or digest is None or (asked < before and not is_held(repository, digest)):
                self._table.delete(key)
                dropped += 1
        return dropped


def referrers_in(body: bytes) -> list[Digest]:
    """The manifests that a list of referrers names, in its order; those that are malformed left out."""
    try:
        entries = json.loads(body)["manifests"]
        texts = [str(entry["digest"]) for entry in entries]
    except (*_MALFORMED, RecursionError):
        return []
    return [digest for digest in map(_digest, texts) if digest is not None]


def _kept_list(value: Any) -> KeptList | None:
    try:
        body = None if value["body"] is None else str(value["body"]).encode()
        filters = None if value["filters"] is None else str(value["filters"])
        return KeptList(body, tuple(map(str, value["links"])), filters, float(value["asked"]))
    except _MALFORMED:
        return None


def _repository(name: str) -> Repository | None:
    registry, _, path = name.partition("/")
    try:
        return Repository.parse(registry, path)
    except InvalidInput:
        return None


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidInput:
        return None
