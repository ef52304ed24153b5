"""Upstream's negative answers, for a short time.

KIND|REPOSITORY|REFERENCE    1 if it does not exist, 2 if it is denied
"""

from __future__ import annotations

from typing import Final

from mirror.core.names import ImagePattern, Reference, Repository
from mirror.storage.rows import Kind, parse_key
from mirror.storage.table import Table

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
