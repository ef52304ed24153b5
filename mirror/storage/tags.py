"""Tags: which digest a tag names, when upstream had no such tag, and when a client last pulled it.

tag|REPOSITORY|TAG       the record, labelled with its digest
refused|REPOSITORY|TAG   when upstream, which then had no such tag or denied it, was asked
pulled|REPOSITORY|TAG    when the last pull was, and how many there were of late
forgotten|               the time before which checks do not count
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord, after_check, is_superseded
from mirror.core.names import ImagePattern, Repository, Tag, is_glob
from mirror.core.popularity import NONE, Pulls
from mirror.storage.rows import MALFORMED, delete_if, parse_key, paused
from mirror.storage.table import Table

# The longest time that a check of a tag takes, with all its content fetched.
_MAX_CHECK_S: Final = 86400.0
_DAY_S: Final = 86400.0
_FORGOTTEN: Final = "forgotten|"


class Tags:
    """The table of tags. Reads cost microseconds; writes and walks belong in a thread.

    Attributes:
        on_news: called in a thread when a check has found that a tag is new, moved or refused, and at the first of each day.
    """

    def __init__(self, table: Table) -> None:
        self.on_news: Callable[[Repository, Tag], None] = lambda *_: None
        self._table = table

    def label(self) -> None:
        """Label the rows that earlier versions have written."""
        self._table.label("tag|", "json_extract(value, '$.digest')")

    def is_empty(self) -> bool:
        """Whether no tag is recorded."""
        return not self._table.keys_from("tag|", 1)

    def get(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return the record of a tag, or None."""
        return _record(self._table.get(f"tag|{repository}|{tag}"))

    def put(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """Replace the record of a tag."""
        digest = str(record.digest)
        self._table.set(f"tag|{repository}|{tag}", {**asdict(record), "digest": digest}, label=digest)

    def delete(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag and its pulls."""
        self._table.delete(f"tag|{repository}|{tag}")
        self._table.delete(f"pulled|{repository}|{tag}")

    def delete_unchanged(self, repository: Repository, tag: Tag, seen: TagRecord) -> bool:
        """Delete a tag unless a check has changed it since it was `seen`; returns whether it is deleted."""

        def work() -> bool:
            known = self.get(repository, tag)
            if known is not None and (known.digest, known.checked) != (seen.digest, seen.checked):
                return False
            self.delete(repository, tag)
            return True

        return self._table.change(work) is True

    # ---- checks

    def note_check(
        self,
        repository: Repository,
        tag: Tag,
        found: TagRecord,
        now: float,
        replaces: Callable[[TagRecord | None], bool] = lambda _: True,
    ) -> tuple[TagRecord | None, TagRecord | None]:
        """Record the result of a check, unless a check that began later, in any process, has recorded its own.

        Args:
            found: its `checked` is when the check began.
            replaces: whether it replaces the record that stands; if not, or if that cannot be read, nothing is written.

        Returns:
            The record before, and the record that counts now: `found`, too, if it could not be written.
        """

        def work() -> tuple[TagRecord | None, TagRecord | None]:
            failures = self._table.failures
            known = self.get(repository, tag)
            if self._table.failures != failures or not replaces(known):
                return known, known
            if is_superseded(found.checked, self.refused_at(repository, tag), now):
                return known, known
            kept = after_check(known, found, now)
            if kept is None:
                return known, known
            self.put(repository, tag, kept)
            return known, kept

        before, after = self._table.change(work) or (None, found)
        if after is not None and after != before and _is_news(before, after):
            self.on_news(repository, tag)
        return before, after

    def note_refusal(
        self, repository: Repository, tag: Tag, asked: float, now: float, *, delete: bool, denied: bool = False
    ) -> bool:
        """Record that upstream, asked at `asked`, had no such tag or denied it; False if a later check found it.

        Args:
            delete: delete the record of the tag.
            denied: upstream denied it, which holds until upstream grants it.
        """

        def work() -> bool:
            known = self.get(repository, tag)
            if known is not None and is_superseded(asked, known.checked, now):
                return False
            if delete:
                self.delete(repository, tag)
            elif denied and known is not None and not known.denied:
                self.put(repository, tag, replace(known, denied=True))
            if known is not None:
                self.on_news(repository, tag)
            self._table.set(f"refused|{repository}|{tag}", asked, _MAX_CHECK_S)
            return True

        # A table that is unavailable holds no later check.
        return self._table.change(work) is not False

    def expire(self, repository: Repository, tag: Tag, when: float) -> None:
        """Require a check at the next pull, by a check that begins after `when`."""

        def work() -> None:
            known = self.get(repository, tag)
            if known is not None:
                self.put(repository, tag, replace(known, due=max(when, math.nextafter(known.checked, math.inf))))

        self._table.change(work)

    def forget_checks(self, when: float) -> None:
        """Require a check of every tag at its next pull: one that begins after `when`, in seconds since the epoch."""
        self._table.set(_FORGOTTEN, when)

    def forgotten_at(self) -> float:
        """Return the time before which checks do not count, in seconds since the epoch; 0 if all do."""
        when = self._table.get(_FORGOTTEN)
        return when if isinstance(when, float) else 0.0

    def refused_at(self, repository: Repository, tag: Tag) -> float:
        """Return when upstream was asked that has refused a tag lately, in seconds since the epoch; 0 if it has not."""
        when = self._table.get(f"refused|{repository}|{tag}")
        return when if isinstance(when, float) else 0.0

    # ---- pulls

    def note_pull(self, repository: Repository, tag: Tag, when: float, times: int = 1) -> None:
        """Record pulls, the last of them at `when`. They have a row of their own, so that they never overwrite a check.

        Of two processes that write at the same moment, one may not be counted: the figure is for popularity only.
        """
        pulls = self.pulls(repository, tag).plus(times, when)
        self._table.set(f"pulled|{repository}|{tag}", [pulls.last, pulls.weight])

    def pulls(self, repository: Repository, tag: Tag) -> Pulls:
        """Return how often clients pull a tag."""
        value = self._table.get(f"pulled|{repository}|{tag}")
        try:
            last, weight = value
            return Pulls(float(last), float(weight))
        except MALFORMED:
            return NONE

    # ---- lists

    def matching(self, pattern: ImagePattern | None = None) -> Iterator[tuple[Repository, Tag, TagRecord]]:
        """Yield every tag, or those that a pattern matches, which costs little if the pattern names one repository."""
        return ((repository, tag, record) for repository, tag, record, _ in self.with_pulls(pattern))

    def with_pulls(self, pattern: ImagePattern | None = None) -> Iterator[tuple[Repository, Tag, TagRecord, Pulls]]:
        """Yield the same tags as `matching`, with their pulls."""
        only = None if pattern is None else pattern.only_repository()
        for key, value in self._rows(only, pattern):
            record, name = _record(value), _name(key)
            if record is None or name is None:
                continue
            if pattern is not None and not pattern.matches(*name, record.digest):
                continue
            pulls = self.pulls(*name)
            yield *name, replace(record, pulled=max(record.pulled, pulls.last)), pulls

    def _rows(self, only: Repository | None, pattern: ImagePattern | None) -> Iterable[tuple[str, Any]]:
        if only is None or pattern is None:
            return self._table.items("tag|")
        if pattern.tag is None or is_glob(pattern.tag):
            return self._table.items(f"tag|{only}|")
        key = f"tag|{only}|{pattern.tag}"
        return [(key, self._table.get(key))]

    def names(self, repository: Repository) -> Iterator[Tag]:
        """Yield the tags of a repository."""
        return (name[1] for name in map(_name, self._table.keys(f"tag|{repository}|")) if name is not None)

    def repositories(self) -> Iterator[tuple[Repository, Tag]]:
        """Yield every repository that has a tag, with the first of its tags."""
        return (name for name in map(_name, self._table.groups_from("tag|")) if name is not None)

    def naming(self, repository: Repository, digest: Digest) -> list[Tag]:
        """Return the tags of a repository that name a digest."""
        return [tag for name, tag in self.naming_anywhere(digest) if name == repository]

    def naming_anywhere(self, digest: Digest) -> list[tuple[Repository, Tag]]:
        """Return the tags of all repositories that name a digest."""
        return [name for name in map(_name, self._table.labelled(str(digest))) if name is not None]

    def drop(
        self,
        is_present: Callable[[Digest], bool],
        before: float,
        pause: Callable[[], bool] = lambda: False,
        keeps: Callable[[Repository, Tag], bool] = lambda *_: False,
    ) -> int:
        """Delete tags whose manifest is gone and that were neither pulled nor checked since `before`; returns their number.

        Until then they answer requests that need no more than the digest.

        Args:
            pause: called after every few hundred rows; True ends the pass.
            keeps: whether what a tag names is never forgotten.
        """
        dropped = 0
        for key in paused(self._table.keys("tag|"), pause):
            name = _name(key)
            if name is None or (record := self.get(*name)) is None or is_present(record.digest):
                continue
            if max(record.checked, record.pulled, self.pulls(*name).last) < before and not keeps(*name):
                dropped += self.delete_unchanged(*name, record)
        for key in paused(self._table.keys("pulled|"), pause):
            tag = f"tag{key.removeprefix('pulled')}"
            delete_if(self._table.change, partial(self._lacks, tag), partial(self._table.delete, key))
        return dropped

    def _lacks(self, key: str) -> bool:
        return self._table.get(key) is None


def _is_news(before: TagRecord | None, after: TagRecord) -> bool:
    return before is None or before.digest != after.digest or before.checked // _DAY_S != after.checked // _DAY_S


def _name(key: str) -> tuple[Repository, Tag] | None:
    name = parse_key(key)
    return None if name is None or not isinstance(name[1], Tag) else (name[0], name[1])


def _record(value: Any) -> TagRecord | None:
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
    except MALFORMED:
        return None
