"""Helpers for asyncio: a signal without data, single flight, use counts, and work in threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from mirror import spans

T = TypeVar("T")
P = ParamSpec("P")

# Hashing and parsing more bytes would block the event loop for too long.
_MAX_INLINE_BYTES = 256 << 10


async def in_thread(executor: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread.

    Cancelling the wait ends it at once. Work that has started continues, so the caller must not close what the thread uses;
    `on_descriptor` and `Shared` ensure that. Work that has not started never does.
    """
    return await asyncio.get_running_loop().run_in_executor(executor, functools.partial(work, *args, **kwargs))


async def on_bytes(size: int, executor: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work on `size` bytes: inline if they are few, else in a thread, so that the event loop is not blocked."""
    if size <= _MAX_INLINE_BYTES:
        return work(*args, **kwargs)
    return await in_thread(executor, work, *args, **kwargs)


async def on_descriptor(
    executor: Executor, descriptor: int, work: Callable[Concatenate[int, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run blocking work on a duplicate of a descriptor, which stays open until the work ends. See `in_thread`.

    Raises:
        OSError: no descriptor is left.
    """
    own = os.dup(descriptor)
    return await _submitted(executor, functools.partial(work, own, *args, **kwargs), lambda: os.close(own))


class Shared:
    """A resource that threads use: closed when its owner has closed it and no thread uses it.

    Args:
        close: called once, in the thread of the last user.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._uses = 1
        self._end = close
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the owner has closed it."""
        return self._closed

    def close(self) -> None:
        """Close it, for the owner. No use may begin afterwards."""
        if not self._closed:
            self._closed = True
            self.drop()

    def keep(self) -> None:
        """Begin a use; `drop` ends it."""
        with self._lock:
            self._uses += 1

    def drop(self) -> None:
        """End a use."""
        with self._lock:
            self._uses -= 1
            last = self._uses == 0
        if last:
            self._end()

    async def in_thread(self, executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work that uses it. See the function `in_thread`."""
        self.keep()
        return await _submitted(executor, functools.partial(work, *args, **kwargs), self.drop)


async def _submitted(executor: Executor, work: Callable[[], T], ended: Callable[[], None]) -> T:
    try:
        future = executor.submit(work)
    except BaseException:
        ended()
        raise
    # Called by the thread, or on cancellation of work that has not started.
    future.add_done_callback(lambda _: ended())
    return await asyncio.wrap_future(future)


async def opened_in_thread(executor: Executor, work: Callable[[], T], close: Callable[[T], None]) -> T:
    """Open something in a thread; close it again if the caller was cancelled meanwhile."""
    future = executor.submit(work)

    def forget(done: Future[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            close(done.result())

    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(forget)
        raise


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines concurrently; the first failure cancels the others and is raised unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work that releases something, also while the caller is cancelled; the cancellation is raised afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


class Signal:
    """Wakes waiters. It carries no data: a waiter checks the state itself."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[Hashable, set[asyncio.Future[bool]]] = {}

    def pulse(self, key: Hashable = None) -> None:
        """Wake the waiters of a key, or all if it is None. Call on the event loop."""
        keys = list(self._waiters) if key is None else [key]
        for one in keys:
            for waiter in self._waiters.pop(one, ()):
                if not waiter.done():
                    waiter.set_result(True)

    async def wait(self, timeout: float, key: Hashable = None) -> bool:
        """Wait for the next pulse of the key or of all, at most `timeout` seconds; False if there was none."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.setdefault(key, set()).add(waiter)
        # Cheaper than `asyncio.timeout`: readers of a blob wait for each step of it.
        limit = loop.call_later(timeout, _expire, waiter)
        try:
            return await waiter
        finally:
            limit.cancel()
            self._leave(key, waiter)

    def _leave(self, key: Hashable, waiter: asyncio.Future[bool]) -> None:
        waiters = self._waiters.get(key, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiters.pop(key, None)


def _expire(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


class UseCount:
    """Counts the users of something that is closed when there are none.

    Attributes:
        users: the current number.
    """

    __slots__ = ("_released", "users")

    def __init__(self) -> None:
        self.users = 0
        self._released: Signal | None = None

    def acquire(self) -> None:
        """Add a user, which has to call `release`."""
        self.users += 1

    def release(self) -> None:
        """Remove a user. Call on the event loop."""
        self.users -= 1
        if not self.users and self._released is not None:
            self._released.pulse()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Count as a user inside the context."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    async def unused(self) -> None:
        """Wait until there is no user. There may be new users afterwards."""
        self._released = self._released or Signal()
        while self.users:
            await self._released.wait(60.0)


class SingleFlight(Generic[T]):
    """Runs one piece of work per key at a time; concurrent callers share its result.

    The work is a task of its own, and continues when its callers are cancelled.

    Args:
        in_use: counts each piece of work as a user.
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
        joined = key in self._tasks
        if not joined:
            return await asyncio.shield(self.start(key, work)), joined
        with spans.wait("wait for a shared request"):
            return await asyncio.shield(self.start(key, work)), joined

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The flight under `key`, begun if there is none. Must be called on the event loop."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._tasks[key] = task
            self._in_use.acquire()
            task.add_done_callback(lambda done: self._land(key, done))
        return task

    def _land(self, key: Hashable, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        self._in_use.release()
        if not task.cancelled():
            # Retrieve the exception, so that asyncio does not log it when all callers were cancelled.
            task.exception()

    async def close(self) -> None:
        """Cancel the work in progress and wait for its end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
