"""Sync jobs, their results, the state of the scheduler, and exports.

The processes of a store share it: any of them accepts a job and reports on it, and the leader runs it.

order|ID        a job that waits or runs; it is removed at its end
rest|ID         its images beyond the first few
cancel|ID       an operator has cancelled it; removed with the job
shared|ID       the job, for the node's reports to its cluster, until its last one
done|ID         the summary of a finished job, for a day
result|IMAGE    the last result of an image
state|NAME      a state of the scheduler
export|ID       the state of an export, for a day
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from mirror.storage.table import Table

T = TypeVar("T")

# Images in the row of the job itself.
_MAX_FIRST_IMAGES = 10
# Every result has these fields.
_RESULT_FIELDS = frozenset({"result", "time", "bytes_fetched", "bytes_held", "cause"})
_RESULT_TTL_S = 30 * 86400.0
_DONE_TTL_S = 86400.0
# The state of an export has these fields.
_EXPORT_FIELDS = frozenset({"name", "result", "began", "updated"})
# Longer than any job waits or runs. A cancellation that comes as its job ends is removed by nobody else.
_CANCELLATION_TTL_S = _SHARED_TTL_S = 7 * 86400.0


class JobStore:
    """Rows of JSON. Reads cost microseconds; writes belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/sync")

    def close(self) -> None:
        """Close the database."""
        self._table.close()

    # ---- jobs

    def put(self, name: str, job: dict[str, Any]) -> bool:
        """Keep a job until it is deleted, in place of one of the same name; False if it could not be written.

        Its images beyond the first few have a row of their own, so that listing all jobs stays cheap.
        """
        first, rest = job["images"][:_MAX_FIRST_IMAGES], job["images"][_MAX_FIRST_IMAGES:]
        if rest:
            self._table.set(f"rest|{name}", rest)
        self._table.set(f"order|{name}", {**job, "images": first, "more": len(rest)})
        return self.get(name) == job

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a whole pending job, or None."""
        row = self._table.get(f"order|{name}")
        if not isinstance(row, dict) or not isinstance(row.get("images"), list):
            return None
        rest = self._table.get(f"rest|{name}") if row.pop("more", 0) else []
        return {**row, "images": row["images"] + rest} if isinstance(rest, list) else None

    def pending(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the pending jobs by name, each with its first images and the number of `more`."""
        return [(name, row) for name, row in self._rows("order|") if isinstance(row, dict)]

    def count_pending(self) -> int:
        """Return how many jobs are pending."""
        return len(self._table.keys_from("order|"))

    def delete_unchanged(self, name: str, job: dict[str, Any]) -> None:
        """Delete a job, unless another one of the same name has replaced it."""
        if self.get(name) == job:
            self.delete(name)

    def delete(self, name: str) -> None:
        """Delete the job of a name."""
        self._table.delete(f"order|{name}")
        self._table.delete(f"rest|{name}")

    def put_cancellation(self, name: str, created: float) -> None:
        """Have the leader cancel the job of a name that was created at `created`, in seconds since the epoch."""
        self._table.set(f"cancel|{name}", created, _CANCELLATION_TTL_S)

    def is_cancelled(self, name: str, created: float) -> bool:
        """Whether the job of a name that was created then is cancelled."""
        return bool(self._table.get(f"cancel|{name}") == created)

    def cancellations(self) -> list[str]:
        """Return the names of the cancelled jobs."""
        return [key.removeprefix("cancel|") for key in self._table.keys_from("cancel|")]

    def delete_cancellation(self, name: str, created: float) -> None:
        """Forget the cancellation of a job that has ended."""
        if self.is_cancelled(name, created):
            self._table.delete(f"cancel|{name}")

    def put_shared(self, name: str, job: dict[str, Any]) -> None:
        """Have the leader report of a job to the cluster."""
        self._table.set(f"shared|{name}", job, _SHARED_TTL_S)

    def shared(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the jobs of which the leader reports to the cluster, by name."""
        return [(name, row) for name, row in self._rows("shared|") if isinstance(row, dict)]

    def delete_shared(self, name: str) -> None:
        """Report no more of a job."""
        self._table.delete(f"shared|{name}")

    def put_done(self, name: str, summary: dict[str, Any]) -> None:
        """Keep the summary of a finished job for a day."""
        self._table.set(f"done|{name}", summary, _DONE_TTL_S)

    def done(self, name: str) -> dict[str, Any] | None:
        """Return the summary of a finished job, or None."""
        row = self._table.get(f"done|{name}")
        return row if isinstance(row, dict) and "result" in row else None

    def delete_done(self, name: str) -> None:
        """Forget the end of a job, which is done once more."""
        self._table.delete(f"done|{name}")

    # ---- exports

    def put_export(self, name: str, state: dict[str, Any]) -> None:
        """Keep the state of an export for a day."""
        self._table.set(f"export|{name}", state, _DONE_TTL_S)

    def exports(self) -> list[dict[str, Any]]:
        """Return the states of running and lately ended exports."""
        return [row for _, row in self._rows("export|") if isinstance(row, dict) and row.keys() >= _EXPORT_FIELDS]

    # ---- results

    def put_result(self, image: str, result: dict[str, Any]) -> None:
        """Replace the result of an image."""
        self._table.set(f"result|{image}", result, _RESULT_TTL_S)

    def result(self, image: str) -> dict[str, Any] | None:
        """Return the last result of an image, or None."""
        row = self._table.get(f"result|{image}")
        return row if isinstance(row, dict) and row.keys() >= _RESULT_FIELDS else None

    def results(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the last result of each image, by name."""
        rows = ((key.removeprefix("result|"), row) for key, row in self._table.items("result|"))
        return ((image, row) for image, row in rows if isinstance(row, dict) and row.keys() >= _RESULT_FIELDS)

    # ---- state

    def put_state(self, name: str, state: Any) -> None:
        """Keep a state."""
        self._table.set(f"state|{name}", state)

    def state(self, name: str, kind: type[T]) -> T:
        """Return a state of that type, an empty one if there is none."""
        state = self._table.get(f"state|{name}")
        return state if isinstance(state, kind) else kind()

    def kept(self) -> dict[str, list[str]]:
        """Return the images that each configured entry last selected, by the text of the entry."""
        rows = self.state("kept", dict)
        return {entry: [str(name) for name in names] for entry, names in rows.items() if isinstance(names, list)}

    def kept_images(self) -> frozenset[str]:
        """Return the images of all configured entries. Costs one read."""
        return frozenset(name for names in self.kept().values() for name in names)

    def _rows(self, prefix: str) -> Iterator[tuple[str, Any]]:
        return ((key.removeprefix(prefix), row) for key, row in self._table.items_from(prefix))
