"""The ledger: what has been ordered to be fetched, what came of it, and which tags the configuration keeps here.

Shared by the processes of a store, so that any of them takes an order and tells of it, and one carries it out.

order|ID        an order that waits or is being carried out; it stays until it has come to its end
done|ID         what came of an order, for a while
result|IMAGE    what came of an image last
state|NAME      what the process that carries out says of itself
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from mirror.storage.table import Table

T = TypeVar("T")

# A row without these is none.
_OF_RESULTS = frozenset({"result", "time", "bytes_fetched", "bytes_held", "cause"})
# What came of an image that nobody asks for any more is forgotten. Seconds.
_RESULTS_KEPT = 30 * 86400.0
_DONE_KEPT = 86400.0


class Ledger:
    """Rows of JSON; reads cost microseconds, writes belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/sync")

    def close(self) -> None:
        """Let go of the database."""
        self._table.close()

    # ---- orders

    def put_order(self, name: str, order: dict[str, Any]) -> bool:
        """Keep an order until it is removed; another one of the same name gives way. False if it could not be written."""
        self._table.set(f"order|{name}", order)
        return bool(self._table.get(f"order|{name}") == order)

    def orders(self) -> list[tuple[str, dict[str, Any]]]:
        """The orders that stand, by name."""
        return [(name, row) for name, row in self._rows("order|") if isinstance(row, dict)]

    def remove_order(self, name: str, order: dict[str, Any]) -> None:
        """Remove an order, unless another one of the same name has come meanwhile."""
        if self._table.get(f"order|{name}") == order:
            self._table.delete(f"order|{name}")

    def put_done(self, name: str, summary: dict[str, Any]) -> None:
        """Keep what came of an order, for whoever has given it."""
        self._table.set(f"done|{name}", summary, _DONE_KEPT)

    def done(self, name: str) -> dict[str, Any] | None:
        """What came of an order, or None."""
        row = self._table.get(f"done|{name}")
        return row if isinstance(row, dict) and "result" in row else None

    # ---- results

    def put_result(self, image: str, result: dict[str, Any]) -> None:
        """Keep what came of an image, in place of what came of it before."""
        self._table.set(f"result|{image}", result, _RESULTS_KEPT)

    def results(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What came last of each image, by name."""
        return ((image, row) for image, row in self._rows("result|") if isinstance(row, dict) and row.keys() >= _OF_RESULTS)

    # ---- state

    def put_state(self, name: str, state: Any) -> None:
        """Keep a state."""
        self._table.set(f"state|{name}", state)

    def state(self, name: str, kind: type[T]) -> T:
        """A state of that type; an empty one if there is none."""
        state = self._table.get(f"state|{name}")
        return state if isinstance(state, kind) else kind()

    def _rows(self, prefix: str) -> Iterator[tuple[str, Any]]:
        for key in self._table.keys_from(prefix):
            yield key.removeprefix(prefix), self._table.get(key)
