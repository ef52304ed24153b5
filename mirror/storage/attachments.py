"""Attachments: upstream's answers about signatures and other referrers of manifests, for times when upstream is unavailable.

list|REPOSITORY|SUBJECT|PAGE     a list of referrers as upstream gave it, or null if it has none
absent|REPOSITORY|SUBJECT|TAG    when upstream was asked for a signature tag that it did not have
verdict|REPOSITORY|SUBJECT|RULE  see `mirror.storage.verdicts`
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.core.signatures import subject_of
from mirror.storage.rows import MALFORMED, parse_digest, parse_repository, paused
from mirror.storage.table import Table

# Longer lists are kept in memory only.
_MAX_BODY_BYTES: Final = 256 << 10
# Of one manifest: clients may filter by each type of artifact.
_MAX_LISTS: Final = 50


@dataclass(frozen=True, slots=True)
class KeptList:
    """A list of referrers.

    Attributes:
        body: None if upstream answered that it has no such list.
        asked: when upstream was asked, in seconds since the epoch.
    """

    body: bytes | None
    links: tuple[str, ...]
    filters: str | None
    asked: float


class Attachments:
    """The table of attachments. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put_list(self, repository: Repository, subject: Digest, page: str, kept: KeptList) -> None:
        """Record a list, unless it is very long or its manifest has too many already."""
        key, prefix = f"list|{repository}|{subject}|{page}", f"list|{repository}|{subject}|"
        if kept.body is not None and len(kept.body) > _MAX_BODY_BYTES:
            return
        if self._table.get(key) is None and len(self._table.keys_from(prefix, _MAX_LISTS)) == _MAX_LISTS:
            return
        body = None if kept.body is None else kept.body.decode(errors="replace")
        self._table.set(key, {"body": body, "links": list(kept.links), "filters": kept.filters, "asked": kept.asked})

    def list(self, repository: Repository, subject: Digest, page: str) -> KeptList | None:
        """Return a recorded list, or None."""
        return _kept_list(self._table.get(f"list|{repository}|{subject}|{page}"))

    def delete_list(self, repository: Repository, subject: Digest, page: str) -> None:
        """Delete a list."""
        if self.list(repository, subject, page) is not None:
            self._table.delete(f"list|{repository}|{subject}|{page}")

    def put_absent(self, repository: Repository, tag: Tag, asked: float) -> None:
        """Record that upstream, asked at `asked`, has no such tag; only of signature tags."""
        subject = subject_of(tag)
        if subject is not None:
            self._table.set(f"absent|{repository}|{subject}|{tag}", asked)

    def absent_since(self, repository: Repository, tag: Tag) -> float | None:
        """Return when upstream was asked for a tag that it did not have, in seconds since the epoch; None if it was not."""
        subject = subject_of(tag)
        value = None if subject is None else self._table.get(f"absent|{repository}|{subject}|{tag}")
        return float(value) if isinstance(value, int | float) else None

    def delete_absent(self, repository: Repository, tag: Tag) -> None:
        """Delete the record that upstream has no such tag."""
        subject = subject_of(tag)
        if subject is not None and self.absent_since(repository, tag) is not None:
            self._table.delete(f"absent|{repository}|{subject}|{tag}")

    def referrers(self, repository: Repository, subject: Digest) -> set[Digest]:
        """Return the manifests that the recorded lists name."""
        found: set[Digest] = set()
        for _, value in self._table.items_from(f"list|{repository}|{subject}|"):
            kept = _kept_list(value)
            if kept is not None and kept.body is not None:
                found.update(referrers_in(kept.body))
        return found

    def delete(self, repository: Repository, subject: Digest) -> None:
        """Delete all rows about a manifest."""
        prefixes = (f"{kind}|{repository}|{subject}|" for kind in ("list", "absent", "verdict"))
        self._table.delete_many([key for prefix in prefixes for key in self._table.keys_from(prefix)])

    def drop(
        self, is_held: Callable[[Repository, Digest], bool], before: float, pause: Callable[[], bool] = lambda: False
    ) -> int:
        """Delete answers given before a time about manifests that their repositories do not hold; returns how many.

        Args:
            pause: called after every few hundred rows; True ends the pass.
        """
        dropped = 0
        for key in paused(self._table.keys(), pause):
            _, name, subject, *_ = [*key.split("|"), "", "", ""]
            repository, digest = parse_repository(name), parse_digest(subject)
            if repository is None or digest is None or (not is_held(repository, digest) and self._asked(key) < before):
                self._table.delete(key)
                dropped += 1
        return dropped

    def _asked(self, key: str) -> float:
        value = self._table.get(key)
        return float(value) if isinstance(value, int | float) else getattr(_kept_list(value), "asked", 0.0)


def referrers_in(body: bytes) -> list[Digest]:
    """Return the manifests that a list of referrers names, in its order, without malformed ones."""
    try:
        entries = json.loads(body)["manifests"]
        texts = [str(entry["digest"]) for entry in entries]
    except (*MALFORMED, RecursionError):
        return []
    return [digest for digest in map(parse_digest, texts) if digest is not None]


def _kept_list(value: Any) -> KeptList | None:
    try:
        body = None if value["body"] is None else str(value["body"]).encode()
        filters = None if value["filters"] is None else str(value["filters"])
        return KeptList(body, tuple(map(str, value["links"])), filters, float(value["asked"]))
    except MALFORMED:
        return None
