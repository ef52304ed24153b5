"""A store with its workers and readers, all in the test's process."""

import asyncio
import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from mirror.core.bounded_cache import BoundedCache
from mirror.core.counts import CountTable
from mirror.core.digest import Digest
from mirror.download.downloads import Downloads
from mirror.download.partial import CHUNK, Partial
from mirror.download.reader import HeldBody, Span, StreamingBody
from mirror.download.services import DownloadLimits, DownloadServices
from mirror.download.shares import Shares
from mirror.errors import MirrorError
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from mirror.storage.threads import ThreadPools
from tests.support.waiting import LIMIT

HELD_BACK = 64 << 10


def open_partial(layout, digest):
    """A blob in the making, as a worker of its own sees it."""
    return Partial(layout, SpaceQuota(layout, 0, 0), digest)


def reopened(layout, digest):
    """Whether there is a valid map after a restart, and what it says."""
    partial = open_partial(layout, digest)
    valid = partial.refresh()
    partial.close()
    return valid, partial


class InlineExecutor(Executor):
    """Does the work at once, so that a test can count the turns of the event loop."""

    def submit(self, work, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - handed on, as an executor does
            future.set_exception(error)
        return future


class Reader:
    """Reads a body in a task of its own, as a request does, and keeps what it got."""

    def __init__(self, body, start, stop):
        self.body = body
        self.data = bytearray()
        self.spans = []
        self.error = None
        self._start, self._stop = start, stop
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self):
        try:
            size = await self.body.sized()
            stop = size if self._stop is None else self._stop
            await self.body.ready(self._start, stop)
            async for span in self.body.spans(self._start, stop):
                self.spans.append(span)
                self.data += os.pread(span.file.fileno(), span.count, span.start) if isinstance(span, Span) else span
                self._news.set()
        except MirrorError as error:
            self.error = error
        finally:
            await self.body.close()
            self._news.set()

    async def has(self, count):
        """Wait until so many bytes have been read."""
        async with asyncio.timeout(LIMIT):
            while len(self.data) < count:
                assert not self.task.done(), f"ended after {len(self.data)} bytes: {self.error}"
                self._news.clear()
                await self._news.wait()

    async def whole(self):
        """What was asked for, to its end; raises what kept it from there."""
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([self.task])
        if self.error is not None:
            raise self.error
        return bytes(self.data)

    async def ended_short(self):
        """Wait for the end and return the error that it ended with."""
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([self.task])
        assert self.error is not None
        return self.error

    async def leave(self):
        """Go away in the middle."""
        self.task.cancel()
        await asyncio.wait([self.task])


def ingest_of(reader):
    """The download that a reader reads from."""
    return reader.body._ingest


def partial_of(ingest):
    """The partial file of a download."""
    return ingest._partial


def fetcher_of(ingest):
    """What fetches a download in its process."""
    return ingest._fetcher


async def changed(ingest, timeout_s):
    """Wait for another state of a download."""
    await ingest._change(timeout_s, None)


class World:
    """One store. Each worker stands for a process that uses it.

    `results` and `resumes` are what the workers reported.
    """

    def __init__(self, root, executor=None):
        self.layout = Layout(str(root))
        self.layout.prepare()
        self.files = BlobFiles(self.layout, SpaceQuota(self.layout, 0, 0))
        self.executor = executor or ThreadPoolExecutor(4)
        self.threads = ThreadPools(*[self.executor] * 6)
        self.limits = DownloadLimits(attempts=3, first_byte_s=5.0, stall_s=5.0, fetchers=4, look_ahead_bytes=CHUNK)
        self.speeds = BoundedCache(8)
        self.results = []
        self.resumes = []
        self.room_wanted = []
        self._news = asyncio.Event()
        self._workers = []

    def worker(self):
        work = self.layout, self.files, self.threads
        services = DownloadServices(*work, self.limits, self.resumes.append, self._make_room, self.speeds)
        worker = Downloads(services, Shares(CountTable.private()), self._ended)
        self._workers.append(worker)
        return worker

    async def _make_room(self, size, owner):
        self.room_wanted.append(size)

    def _ended(self, result):
        self.results.append(result)
        self._news.set()

    def pull(self, worker, source, start=0, stop=None, digest=None):
        """Hit, join or start, as a request does."""
        digest = digest or Digest.of(source.data)
        held = self.files.open(digest)
        if held is not None:
            return Reader(HeldBody(held, self.executor), start, stop)
        return Reader(StreamingBody(worker.find(digest) or worker.start(digest, source)), start, stop)

    async def ended(self, count=1):
        """Wait for so many ends of downloads in all, and return their results."""
        async with asyncio.timeout(LIMIT):
            while len(self.results) < count:
                self._news.clear()
                await self._news.wait()
        return self.results

    async def quiet(self):
        """Wait until no worker has anything under way."""
        async with asyncio.timeout(LIMIT):
            while tasks := [task for worker in self._workers for task in worker._tasks]:
                await asyncio.wait(tasks)

    async def close(self):
        for worker in self._workers:
            async with asyncio.timeout(LIMIT):
                await worker.close()

    def holds(self, data):
        return self.files.read(Digest.of(data), len(data)) == data

    def partials(self):
        return sorted(os.listdir(f"{self.layout.root}/partial/sha256"))

    def received(self, digest):
        """What the map on disk says has arrived."""
        partial = open_partial(self.layout, digest)
        partial.refresh()
        count = partial.map.received()
        partial.close()
        return count
