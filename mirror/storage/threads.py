"""The threads that work on a store: apart by what they wait for, so that nothing quick waits behind something slow."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields

# More threads than that would only queue inside the disk.
_SERVE, _WRITE, _PUT, _FLUSH = 8, 8, 8, 4
# One: what is noted later is written later, and the database takes one writer at a time anyway.
_NOTE = 1


@dataclass(frozen=True)
class ThreadPools:
    """Pools of threads.

    Attributes:
        serve: reads what answers wait for.
        write: writes and hashes what arrives; waits for memory, seldom for the disk.
        put: stores small content until it is on the disk.
        flush: waits until large content is on the disk, for as long as that takes; no answer waits for it.
        write_back: has the kernel begin to write what has arrived.
        note: writes into the index.
    """

    serve: Executor
    write: Executor
    put: Executor
    flush: Executor
    write_back: Executor
    note: Executor

    @classmethod
    def start(cls) -> ThreadPools:
        """Pools of their own; threads are started as they are needed."""
        sizes = {"serve": _SERVE, "write": _WRITE, "put": _PUT, "flush": _FLUSH, "write_back": 1, "note": _NOTE}
        return cls(**{name: ThreadPoolExecutor(size, thread_name_prefix=name) for name, size in sizes.items()})

    def shutdown(self) -> None:
        """Wait for everything that has been begun."""
        for field in fields(self):
            getattr(self, field.name).shutdown()
