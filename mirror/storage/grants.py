"""What upstream has granted, to a repository or to any repository of a registry, and what it has lately refused.

Grants:            KIND|SCOPE|DIGEST            bytes, -1 if upstream did not state them; "revoked" for a day after a revocation
Negative answers:  KIND|REPOSITORY|REFERENCE    1 if it does not exist, 2 if it is denied
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from mirror.core.digest import Digest
from mirror.core.names import ImagePattern, Reference, Repository
from mirror.storage.rows import Kind, delete_if, parse_digest, parse_key, paused
from mirror.storage.table import Table

# What began with a grant, and would record it again at its end, takes hours at most.
_REVOKED_S: Final = 86400.0
# No number: an earlier version reads it as no grant.
_REVOKED: Final = "revoked"


class Grants:
    """The table of grants. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def get(self, kind: Kind, scope: str, digest: Digest) -> int | None:
        """Return the size in bytes of what upstream granted, -1 if it did not state one; None if no grant is known.

        Args:
            scope: a repository; or a registry, for a grant to any of its repositories.
        """
        value = self._table.get(f"{kind}|{scope}|{digest}")
        return value if isinstance(value, int) else None

    def put(self, kind: Kind, scope: str, digest: Digest, size: int) -> None:
        """Record that upstream granted a digest within `scope`; `size` in bytes, -1 if it did not state one."""
        self._table.set(f"{kind}|{scope}|{digest}", size)

    def repeat(self, kind: Kind, scope: str, digest: Digest, size: int) -> None:
        """Record a grant again, for a caller that recorded it before; not if it has been revoked since."""

        def work() -> None:
            if not self.is_revoked(kind, scope, digest):
                self.put(kind, scope, digest, size)

        self._table.change(work)

    def delete(self, kind: Kind, scope: str, digest: Digest) -> None:
        """Delete a grant. A revocation stays."""
        key = f"{kind}|{scope}|{digest}"
        self._table.change(lambda: None if self._table.get(key) == _REVOKED else self._table.delete(key))

    def revoke(self, kind: Kind, scope: str, digest: Digest) -> None:
        """Record that upstream has taken back a grant; the next `put` grants it anew."""
        self._table.set(f"{kind}|{scope}|{digest}", _REVOKED, _REVOKED_S)

    def is_revoked(self, kind: Kind, scope: str, digest: Digest) -> bool:
        """Whether a grant has been revoked within a day, and not been given since."""
        return bool(self._table.get(f"{kind}|{scope}|{digest}") == _REVOKED)

    def drop(self, is_present: Callable[[Digest], bool], pause: Callable[[], bool] = lambda: False) -> int:
        """Delete grants of content that is gone; returns how many. The next pull records them again.

        Args:
            pause: called after every few hundred rows; True ends the pass.
        """

        def is_stale(key: str) -> bool:
            digest = parse_digest(key.rpartition("|")[2])
            return digest is None or (not is_present(digest) and self._table.get(key) != _REVOKED)

        return sum(
            delete_if(self._table.change, partial(is_stale, key), partial(self._table.delete, key))
            for key in paused(self._table.keys(), pause)
        )


_ABSENT: Final = 1
_DENIED: Final = 2


class NegativeAnswers:
    """The table of negative answers. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def is_absent(self, kind: Kind, repository: Repository, reference: Reference) -> bool:
        """Whether upstream has lately answered that this does not exist, or denied it."""
        return self._table.get(f"{kind}|{repository}|{reference}") is not None

    def is_denied(self, kind: Kind, repository: Repository, reference: Reference) -> bool:
        """Whether upstream has lately denied this."""
        return bool(self._table.get(f"{kind}|{repository}|{reference}") == _DENIED)

    def put(self, kind: Kind, repository: Repository, reference: Reference, seconds: float, *, denied: bool = False) -> None:
        """Record a negative answer for some seconds."""
        if seconds > 0:
            self._table.set(f"{kind}|{repository}|{reference}", _DENIED if denied else _ABSENT, seconds)

    def delete_matching(self, pattern: ImagePattern) -> None:
        """Delete the negative answers for what a pattern matches."""
        only = pattern.only_repository()
        prefixes = [""] if only is None else [f"manifest|{only}|", f"blob|{only}|"]
        for key in (key for prefix in prefixes for key in self._table.keys(prefix)):
            name = parse_key(key)
            if name is not None and pattern.matches_repository(name[0]):
                self._table.delete(key)
