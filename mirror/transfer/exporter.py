"""Exports images as bundles: collects everything first, so that the length is known, and then sends it from its files."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from mirror.cache.cache import Cache
from mirror.config.model import Config
from mirror.core.counts import Count
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.errors import MirrorError, Offline, PolicyDenied, StorageError, UpstreamRefusal
from mirror.storage.blobs import CachedBlob
from mirror.storage.store import Store
from mirror.sync.progress import Progress
from mirror.sync.quota import SyncQuota
from mirror.transfer import tar_writer
from mirror.transfer.collector import Collector, FoundImage
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.export_state import ExportState, read_states
from mirror.transfer.layout import blob_path
from mirror.transfer.names import ExportTarget, NameResolver, RequestedImage

log = structlog.get_logger(__name__)

MAX_EXPORTS: Final = 4
"""Exports of a mirror at a time."""

_MAX_PROBLEMS: Final = 100
_PUBLISH_INTERVAL_S: Final = 0.5
# After one of them the next image may still be exported.
_ANSWERS = (InvalidInput, UpstreamRefusal, PolicyDenied, Offline)


@dataclass(frozen=True)
class ExportOrder:
    """What is to be exported.

    Attributes:
        name: identifies the export.
        exclude: layers of earlier bundles.
        client: the address that has asked for it.
    """

    name: str
    images: tuple[RequestedImage, ...]
    exclude: frozenset[Digest]
    client: str


class TooManyExports(Exception):
    """So many exports run that another one has to wait."""


class ExportRefused(Exception):
    """The bundle cannot be made.

    Attributes:
        problems: the reasons, by what was asked for.
    """

    def __init__(self, problems: dict[str, Exception]) -> None:
        shown = [f"{name}: {cause}" for name, cause in list(problems.items())[:_MAX_PROBLEMS]]
        more = len(problems) - len(shown)
        super().__init__("\n".join([*shown, f"and {more} more"] if more else shown))
        self.problems = problems


class Export:
    """One export: `prepare` it, then send its `pieces`.

    Attributes:
        state: how far it is.
        sent: bytes that were sent.
    """

    def __init__(self, order: ExportOrder, collector: Collector, resolver: NameResolver) -> None:
        self.state = ExportState(order.name, order.client, [image.text for image in order.images])
        self.sent = 0
        self._order = order
        self._collector = collector
        self._resolver = resolver
        self._progress: Progress | None = None

    def follow(self) -> dict[str, Any]:
        """Return the state, with the figures of this moment."""
        if self.state.phase == "sending":
            self.state.bytes = self.sent
        self.state.follow(self._progress)
        return self.state.row()

    async def prepare(self) -> int:
        """Collect all images; returns the bytes of the bundle.

        Raises:
            ExportRefused: an image cannot be exported.
        """
        targets, problems = await asyncio.to_thread(self._resolver.resolve, self._order.images)
        _refuse(problems)
        found = await self._find(targets)
        await self._add(found)
        size = await self._finish()
        self.state.begin("sending", len(targets))
        self.state.image, self.state.done, self.state.size = None, len(targets), size
        return size

    async def _find(self, targets: Sequence[ExportTarget]) -> list[FoundImage]:
        self.state.begin("finding", len(targets))
        found: list[FoundImage] = []
        problems: dict[str, Exception] = {}
        for target in targets:
            self.state.image = target.name
            with _noted(problems, target.name):
                found.append(await self._collector.find(target))
            self.state.done += 1
        _refuse(problems)
        return found

    async def _add(self, images: Sequence[FoundImage]) -> None:
        self.state.begin("fetching", len(images))
        problems: dict[str, Exception] = {}
        for image in images:
            self._progress = self._collector.progress(image.target)
            with _noted(problems, image.target.name):
                self.state.report(await self._collector.add(image, self._progress))
            self.state.done += 1
        self._progress = None
        _refuse(problems)

    async def _finish(self) -> int:
        try:
            return await asyncio.to_thread(self._collector.bundle.finish)
        except InvalidBundle as error:
            raise ExportRefused({f"{self.state.total} images": error}) from error

    def pieces(self) -> Generator[bytes | CachedBlob]:
        """Yield the bundle, as bytes and as whole files. A file is closed when the next piece is asked for.

        Raises:
            StorageError: a blob that was not pinned has left the store.
        """
        head = b""
        for digest, blob in self._collector.bundle.blobs.items():
            self.state.image = blob.image
            yield head + tar_writer.header(blob_path(digest), blob.size)
            try:
                held = self._collector.pins.take(digest, blob.size)
            except StorageError as error:
                raise StorageError(f"{blob.image}: {error}", error.reason) from error
            with contextlib.closing(held):
                yield held
            head = tar_writer.padding(blob.size)
        self.state.image = None
        for name, data in self._collector.bundle.documents:
            head += tar_writer.header(name, len(data)) + data + tar_writer.padding(len(data))
        yield head + tar_writer.END

    def close(self) -> None:
        """Close the files that were not sent."""
        self._collector.pins.close()


class Exporter:
    """Runs exports. Outlives reloads: `configure` must be called before it is used.

    Args:
        running: counts the exports of all processes.
    """

    def __init__(self, store: Store, running: Count) -> None:
        self._store = store
        self._running = running

    def configure(self, config: Config, cache: Cache) -> None:
        """Use a configuration and what was built from it for the next exports."""
        self._config = config
        self._cache = cache

    def states(self) -> list[dict[str, Any]]:
        """Return the states of running and lately ended exports, the latest first. Blocks on the index."""
        return sorted(read_states(self._store.jobs), key=lambda row: float(row["began"]), reverse=True)

    @contextlib.asynccontextmanager
    async def run(self, order: ExportOrder) -> AsyncIterator[Export]:
        """Run an export inside the context.

        Raises:
            TooManyExports: others have to end first.
        """
        if not self._running.enter(MAX_EXPORTS):
            raise TooManyExports(f"{MAX_EXPORTS} exports are running; try again when one of them has ended")
        try:
            # A reload keeps the connections of this configuration open.
            with self._cache.context.in_use.hold():
                async with self._published(self._build(order)) as export:
                    yield export
        finally:
            self._running.leave()

    def _build(self, order: ExportOrder) -> Export:
        config, cache = self._config, self._cache
        quota = SyncQuota(cache.context.registries, config.sync.reserve)
        collector = Collector(cache, quota, order.exclude, tuple(config.sync.platforms))
        resolver = NameResolver(self._store, config.default_registry, config.registries, cache.pull_policy.may_list)
        return Export(order, collector, resolver)

    @contextlib.asynccontextmanager
    async def _published(self, export: Export) -> AsyncIterator[Export]:
        """Write the state of an export for all processes while it runs, and its end."""
        state, began = export.state, time.monotonic()
        publishing = asyncio.get_running_loop().create_task(self._publish(export))
        try:
            yield export
            state.result = "completed"
        except ConnectionError:
            state.result, state.cause = "cut", "the client has disconnected"
            raise
        except asyncio.CancelledError:
            state.result, state.cause = "cut", "the mirror has stopped"
            raise
        except Exception as error:
            state.result, state.cause = "failed", str(error) or type(error).__name__
            raise
        finally:
            publishing.cancel()
            export.close()
            export.follow()
            state.phase = "ended"
            self._store.threads.note.submit(self._store.jobs.put_export, state.name, state.row())
            seconds = round(time.monotonic() - began, 1)
            ended = {"result": state.result, "images": state.total, "bytes": state.bytes, "seconds": seconds}
            log.info("export_ended", export=state.name, client=state.client, **ended, cause=state.cause)

    async def _publish(self, export: Export) -> None:
        loop, note, put = asyncio.get_running_loop(), self._store.threads.note, self._store.jobs.put_export
        while True:
            # In the same thread as the end, which therefore stays.
            await loop.run_in_executor(note, put, export.state.name, export.follow())
            await asyncio.sleep(_PUBLISH_INTERVAL_S)


@contextlib.contextmanager
def _noted(problems: dict[str, Exception], name: str) -> Iterator[None]:
    """Note an error of an image; one after which the next images cannot be exported either is raised with those before it."""
    try:
        yield
    except (MirrorError, InvalidInput) as error:
        problems[name] = error
        if not isinstance(error, _ANSWERS):
            _refuse(problems)


def _refuse(problems: dict[str, Exception]) -> None:
    if problems:
        raise ExportRefused(problems)
