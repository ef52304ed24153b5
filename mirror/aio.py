"""Small pieces that asyncio lacks: a signal without data, work shared by all who ask for it, threads that are never orphaned."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(executor: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread; a cancellation is passed on only when the thread is done.

    So whoever is cancelled may close the descriptors that the thread was using.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, lambda: work(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            # A second one, as of a shutdown that is in a hurry, changes nothing about the thread.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        raise


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do several things side by side; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


class Signal:
    """Wakes everyone who waits; what has changed they see for themselves."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def pulse(self) -> None:
        """Wake all present waiters. Must be called on the event loop."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float) -> bool:
        """Wait for the next pulse, at most `timeout` seconds; False if none came."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True


class UseCount:
    """Counts who still uses something that is to be closed once nobody does.

    Attributes:
        users: how many.
    """

    __slots__ = ("_released", "users")

    def __init__(self) -> None:
        self.users = 0
        self._released: Signal | None = None

    def acquire(self) -> None:
        """Count one more user, who has to call `release`."""
        self.users += 1

    def release(self) -> None:
        """Count one user less. Must be called on the event loop."""
        self.users -= 1
        if not self.users and self._released is not None:
            self._released.pulse()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be a user inside the context."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    async def unused(self) -> None:
        """Wait until there is no user. Somebody may become one again afterwards."""
        self._released = self._released or Signal()
        while self.users:
            await self._released.wait(60.0)


class SingleFlight(Generic[T]):
    """Runs one piece of work per key at a time; whoever asks meanwhile gets the same result.

    The work is a task of its own: it goes on when those who wait for it leave.

    Args:
        in_use: counts each piece of work as a user of what it works with.
    """

    def __init__(self, in_use: UseCount | None = None) -> None:
        self._in_use = in_use or UseCount()
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """Return the result of the flight under `key`, and whether it was joined rather than started."""
        task = self._tasks.get(key)
        joined = task is not None
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._tasks[key] = task
            self._in_use.acquire()
            task.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(task), joined

    def _land(self, key: Hashable, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        self._in_use.release()
        if not task.cancelled():
            # Retrieved here, so that a flight whose askers have all left does not complain about an unread error.
            task.exception()

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
