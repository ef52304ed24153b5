"""Thread pools for work on a store, one for each kind of wait, so that quick work never queues behind slow work."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields

# More threads would only queue inside the disk.
_SERVE, _WRITE, _PUT, _FLUSH = 8, 8, 8, 4
# One keeps the order of writes; the database takes one writer at a time anyway.
_NOTE = 1


@dataclass(frozen=True)
class ThreadPools:
    """Pools of threads.

    Attributes:
        serve: reads for answers.
        write: writes and hashes arriving bytes; waits for memory, seldom for the disk.
        put: stores and flushes small content.
        flush: flushes large content, for as long as that takes; no answer waits for it.
        write_back: starts the writeback of arriving bytes.
        note: writes to the index.
    """

    serve: Executor
    write: Executor
    put: Executor
    flush: Executor
    write_back: Executor
    note: Executor

    @classmethod
    def start(cls) -> ThreadPools:
        """Create the pools; threads start on demand."""
        sizes = {"serve": _SERVE, "write": _WRITE, "put": _PUT, "flush": _FLUSH, "write_back": 1, "note": _NOTE}
        return cls(**{name: ThreadPoolExecutor(size, thread_name_prefix=name) for name, size in sizes.items()})

    def shutdown(self) -> None:
        """Wait for all running work."""
        for field in fields(self):
            getattr(self, field.name).shutdown()
