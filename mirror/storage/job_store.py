"""The ledger: what has been ordered to be fetched, what came of it, and which tags the configuration keeps here.

Shared by the processes of a store, so that any of them takes an order and tells of it, and one carries it out.

order|ID        an order that waits or is being carried out; it stays until it has come to its end
rest|ID         its images beyond the first few
done|ID         what came of an order, for a while
result|IMAGE    what came of an image last
state|NAME      what the process that carries out says of itself
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from mirror.storage.table import Table

T = TypeVar("T")

# Images of an order that lie in its own row.
_FIRST = 10
# A row without these is none.
_OF_RESULTS = frozenset({"result", "time", "bytes_fetched", "bytes_held", "cause"})
# What came of an image that nobody asks for any more is forgotten. Seconds.
_RESULTS_KEPT = 30 * 86400.0
_DONE_KEPT = 86400.0


class JobStore:
    """Rows of JSON; reads cost microseconds, writes belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/sync")

    def close(self) -> None:
        """Let go of the database."""
        self._table.close()

    # ---- orders

    def put_order(self, name: str, order: dict[str, Any]) -> bool:
        """Keep an order until it is removed; another one of the same name gives way. False if it could not be written.

        Its images beyond the first ones lie beside it, so that a look at all orders stays short.
        """
        first, rest = order["images"][:_FIRST], order["images"][_FIRST:]
        if rest:
            self._table.set(f"rest|{name}", rest)
        self._table.set(f"order|{name}", {**order, "images": first, "more": len(rest)})
        return self.order(name) == order

    def order(self, name: str) -> dict[str, Any] | None:
        """An order that stands, whole, or None."""
        row = self._table.get(f"order|{name}")
        if not isinstance(row, dict) or not isinstance(row.get("images"), list):
            return None
        rest = self._table.get(f"rest|{name}") if row.pop("more", 0) else []
        return {**row, "images": row["images"] + rest} if isinstance(rest, list) else None

    def orders(self) -> list[tuple[str, dict[str, Any]]]:
        """The orders that stand, by name: each with its first images, and how many there are `more`."""
        return [(name, row) for name, row in self._rows("order|") if isinstance(row, dict)]

    def waiting(self) -> int:
        """How many orders stand."""
        return len(self._table.keys_from("order|"))

    def remove_order(self, name: str, order: dict[str, Any]) -> None:
        """Remove an order, unless another one of the same name has come meanwhile."""
        if self.order(name) == order:
            self.drop_order(name)

    def drop_order(self, name: str) -> None:
        """Remove an order whatever it is."""
        self._table.delete(f"order|{name}")
        self._table.delete(f"rest|{name}")

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

    def kept(self) -> dict[str, list[str]]:
        """The images that each configured entry stood for last, by the entry's text."""
        rows = self.state("kept", dict)
        return {entry: [str(name) for name in names] for entry, names in rows.items() if isinstance(names, list)}

    def kept_images(self) -> frozenset[str]:
        """The images of all configured entries. Costs one read."""
        return frozenset(name for names in self.kept().values() for name in names)

    def _rows(self, prefix: str) -> Iterator[tuple[str, Any]]:
        return ((key.removeprefix(prefix), row) for key, row in self._table.items_from(prefix))
