"""Attachments: upstream's answers about signatures and other referrers of manifests, for times when upstream is unavailable.

list|REPOSITORY|SUBJECT|PAGE     a list of referrers as upstream gave it, or null if it has none
imported|REPOSITORY|SUBJECT|     a list of the referrers that were imported; upstream's answers do not change it
absent|REPOSITORY|SUBJECT|TAG    when upstream was asked for a signature tag that it did not have
verdict|REPOSITORY|SUBJECT|RULE  see `mirror.storage.verdicts`
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.media import OCI_INDEX
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
        self._table.set(key, _row(kept))

    def list(self, repository: Repository, subject: Digest, page: str) -> KeptList | None:
        """Return a recorded list, or None."""
        return _kept_list(self._table.get(f"list|{repository}|{subject}|{page}"))

    def delete_list(self, repository: Repository, subject: Digest, page: str) -> None:
        """Delete a list."""
        if self.list(repository, subject, page) is not None:
            self._table.delete(f"list|{repository}|{subject}|{page}")

    def imported(self, repository: Repository, subject: Digest) -> KeptList | None:
        """Return the list of the referrers that were imported, or None."""
        return _kept_list(self._table.get(f"imported|{repository}|{subject}|"))

    def add_imported(self, repository: Repository, subject: Digest, entry: dict[str, Any], now: float) -> None:
        """Add the descriptor of a referrer to the list of those that were imported, unless that is very long already."""
        known = self.imported(repository, subject)
        entries = [] if known is None or known.body is None else entries_in(known.body)
        body = _list_of([one for one in entries if one.get("digest") != entry["digest"]] + [entry])
        if len(body) <= _MAX_BODY_BYTES:
            self._table.set(f"imported|{repository}|{subject}|", _row(KeptList(body, (), None, now)))

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
        rows = (self._table.items_from(f"{kind}|{repository}|{subject}|") for kind in ("list", "imported"))
        for _, value in itertools.chain.from_iterable(rows):
            kept = _kept_list(value)
            if kept is not None and kept.body is not None:
                found.update(referrers_in(kept.body))
        return found

    def delete(self, repository: Repository, subject: Digest) -> None:
        """Delete all rows about a manifest."""
        prefixes = (f"{kind}|{repository}|{subject}|" for kind in ("list", "imported", "absent", "verdict"))
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


def entries_in(body: bytes) -> list[dict[str, Any]]:
    """Return the descriptors in a list of referrers, without malformed ones."""
    try:
        entries = json.loads(body)["manifests"]
    except MALFORMED:
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def joined(kept: KeptList | None, imported: KeptList | None) -> KeptList | None:
    """Return upstream's last list with the entries of an imported one, which no filter was applied to."""
    if imported is None or imported.body is None:
        return kept
    if kept is None or kept.body is None:
        return imported
    entries = entries_in(kept.body)
    known = {str(entry.get("digest")) for entry in entries}
    entries += [entry for entry in entries_in(imported.body) if str(entry.get("digest")) not in known]
    return KeptList(_list_of(entries), kept.links, None, kept.asked)


def referrers_in(body: bytes) -> list[Digest]:
    """Return the manifests that a list of referrers names, in its order, without malformed ones."""
    try:
        entries = json.loads(body)["manifests"]
        texts = [str(entry["digest"]) for entry in entries]
    except MALFORMED:
        return []
    return [digest for digest in map(parse_digest, texts) if digest is not None]


def _list_of(entries: list[dict[str, Any]]) -> bytes:
    """Return a list of referrers (OCI distribution-spec, Listing Referrers)."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def _row(kept: KeptList) -> dict[str, Any]:
    body = None if kept.body is None else kept.body.decode(errors="replace")
    return {"body": body, "links": list(kept.links), "filters": kept.filters, "asked": kept.asked}


def _kept_list(value: Any) -> KeptList | None:
    try:
        body = None if value["body"] is None else str(value["body"]).encode()
        filters = None if value["filters"] is None else str(value["filters"])
        return KeptList(body, tuple(map(str, value["links"])), filters, float(value["asked"]))
    except MALFORMED:
        return None
