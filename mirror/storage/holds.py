"""Holds: which moves of tags are held back, and since when digests have been known here.

seen|REPOSITORY|DIGEST    when a repository was first seen to have the manifest, and whether an operator has released it
held|REPOSITORY|TAG       the move of a tag that is held back
told|REPOSITORY|TAG       the digests whose hold was reported for a tag
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.storage.rows import MALFORMED, parse_key
from mirror.storage.table import Table

# Longer than the longest cool-down (`core/tag_moves.py`).
_TTL_S: Final = 90 * 86400.0
# Digests of one tag; an upstream that flaps between more of them is reported again.
_MAX_TOLD: Final = 50


@dataclass(frozen=True, slots=True)
class Sight:
    """Since when a manifest has been known here.

    Attributes:
        first: seconds since the epoch.
        is_released: an operator has released it for its repository.
    """

    first: float
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """A move of a tag that is held back.

    Attributes:
        digest: what upstream names.
        seen: when that was first seen here, in seconds since the epoch.
        checked: when upstream was last asked, in seconds since the epoch.
        is_new: the tag had never been seen here.
        is_released: an operator has released it; the next check follows.
        is_overruled: the cool-down has ended or the move was released, but a rule of `trust` keeps the tag.
    """

    digest: Digest
    seen: float
    checked: float
    is_new: bool
    is_released: bool = False
    is_overruled: bool = False


class Holds:
    """The table of holds. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    # ---- sights

    def sight(self, repository: Repository, digest: Digest) -> Sight | None:
        """Return since when a repository is known to have a manifest; None if that was never recorded."""
        row = self._table.get(f"seen|{repository}|{digest}")
        try:
            return Sight(float(row["first"]), bool(row.get("released")))
        except MALFORMED:
            return None

    def see(self, repository: Repository, digest: Digest, first: float, now: float) -> Sight:
        """Record the sight of a manifest unless an earlier one is recorded, and return the first one.

        A recorded sight in the future was made before the clock was set back; it counts as made now.
        """

        def work() -> Sight:
            known = self.sight(repository, digest)
            if known is not None and known.first <= first:
                return known
            seen = Sight(min(first, now), known is not None and known.is_released)
            self._put_sight(repository, digest, seen)
            return seen

        return self._table.change(work) or Sight(min(first, now))

    def _put_sight(self, repository: Repository, digest: Digest, sight: Sight) -> None:
        row = {"first": sight.first, "released": sight.is_released}
        self._table.set(f"seen|{repository}|{digest}", row, _TTL_S)

    # ---- holds

    def get(self, repository: Repository, tag: Tag) -> Hold | None:
        """Return the move of a tag that is held back, or None."""
        return _hold(self._table.get(f"held|{repository}|{tag}"))

    def put(self, repository: Repository, tag: Tag, hold: Hold) -> bool:
        """Record that a move is held back; returns whether this was not reported before, which counts as reported now.

        A release of the same move stays.
        """

        def work() -> bool:
            known = self.get(repository, tag)
            is_released = known is not None and known.digest == hold.digest and known.is_released
            self._put(repository, tag, replace(hold, is_released=is_released))
            return self._note_told(repository, tag, hold.digest)

        return self._table.change(work) is True

    def end(self, repository: Repository, tag: Tag) -> bool:
        """Delete the hold of a tag; returns whether there was one."""
        if self.get(repository, tag) is None:
            return False
        self._table.delete(f"held|{repository}|{tag}")
        return True

    def release(self, repository: Repository, tag: Tag, digest: Digest) -> bool:
        """Let the move of a tag to a digest through; False if another one is held back by now, or none."""

        def work() -> bool:
            known = self.get(repository, tag)
            if known is None or known.digest != digest:
                return False
            self._put(repository, tag, replace(known, is_released=True))
            return True

        return self._table.change(work) is True

    def release_digest(self, repository: Repository, digest: Digest) -> bool:
        """Release a manifest for its repository; False if it was never seen there."""

        def work() -> bool:
            known = self.sight(repository, digest)
            if known is None:
                return False
            self._put_sight(repository, digest, replace(known, is_released=True))
            return True

        return self._table.change(work) is True

    def all(self) -> Iterator[tuple[Repository, Tag, Hold]]:
        """Yield every move that is held back."""
        for key, value in self._table.items("held|"):
            hold, name = _hold(value), parse_key(key)
            if hold is not None and name is not None and isinstance(name[1], Tag):
                yield name[0], name[1], hold

    def _put(self, repository: Repository, tag: Tag, hold: Hold) -> None:
        self._table.set(f"held|{repository}|{tag}", {**asdict(hold), "digest": str(hold.digest)}, _TTL_S)

    def _note_told(self, repository: Repository, tag: Tag, digest: Digest) -> bool:
        key, text = f"told|{repository}|{tag}", str(digest)
        told = self._table.get(key)
        known = [entry for entry in told if isinstance(entry, str)] if isinstance(told, list) else []
        is_news = text not in known
        self._table.set(key, [*known, text][-_MAX_TOLD:] if is_news else known, _TTL_S)
        return is_news


def _hold(value: Any) -> Hold | None:
    try:
        return Hold(
            Digest.parse(value["digest"]),
            float(value["seen"]),
            float(value["checked"]),
            bool(value["is_new"]),
            bool(value["is_released"]),
            bool(value.get("is_overruled")),
        )
    except MALFORMED:
        return None
