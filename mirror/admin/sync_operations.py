"""The operations of the admin address on sync jobs: jobs wait in the store, and the process that syncs carries them out.

In a cluster all nodes carry out a `sync`, and one of them a `warm`; each of them tells the state of both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mirror.config.model import Config
from mirror.core.errors import InvalidRegistry
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.errors import MirrorError, Offline
from mirror.storage.store import Store
from mirror.sync.job import Given, SyncJob, by_operator, by_webhook
from mirror.sync.job_states import UNFINISHED, add_job, cancel_job, job_state, running_jobs, waiting_jobs

if TYPE_CHECKING:
    from mirror.sync.cluster_orders import ClusterOrders

# Docker Hub sends the webhook of a push before all of its servers answer with the new digest.
_RECHECK_AFTER_S = 15.0


class NoSuchJob(Exception):
    """There is no job to cancel.

    Attributes:
        ended: there was one.
    """

    def __init__(self, message: str, *, ended: bool) -> None:
        super().__init__(message)
        self.ended = ended


class OrdersUnknown(Exception):
    """Redis does not answer, so what other nodes know of an order is not known here."""


class NotAdded(Exception):
    """Too many jobs wait, or the index cannot be written."""


class SyncOperations:
    """Outlives reloads. The methods that are no coroutines block on the index, but for `configure`: call them in a thread.

    Attributes:
        cluster: the orders that its nodes share; None if this mirror is no node of one.
    """

    def __init__(self, store: Store) -> None:
        self.cluster: ClusterOrders | None = None
        self._index = store.index
        self._jobs = store.jobs

    def configure(self, config: Config) -> None:
        """Use a configuration from now on."""
        self._config = config

    async def sync(self, images: list[str]) -> Given:
        """Add a job that checks cached and configured images now, all of them if none are named.

        Raises:
            InvalidInput: one of the names.
            Offline: every registry that one of them means is offline.
            NotAdded: see there; the log says why.
        """
        patterns = [ImagePattern.parse(text, self._config.default_registry) for text in images or ["*/*"]]
        for pattern in patterns:
            self._refuse_offline(pattern)
        return await self._give(by_operator("sync", tuple(images)), map(str, patterns) if images else ())

    async def warm(self, images: list[str], platforms: list[str]) -> Given:
        """Add a job that fetches images. Returns and raises like `sync`."""
        registries, selectors = self._config.registries, []
        for text in images:
            selectors.append(selector := ImageSelector.parse(text, self._config.default_registry))
            registry = selector.repository.registry
            if registry not in registries:
                raise InvalidRegistry(registry, f"not mirrored here; there are {', '.join(sorted(registries))}")
            if registry in self._config.offline_registries:
                raise Offline(f"{text}: {registry} is offline here, so nothing is fetched")
        return await self._give(by_operator("warm", tuple(images), tuple(platforms)), map(str, selectors))

    async def _give(self, job: SyncJob, full_names: Iterable[str]) -> Given:
        """Add a job here, or have the cluster carry it out, where names without a registry may mean something else."""
        if self.cluster is not None:
            given = await self.cluster.give(replace(job, images=tuple(dict.fromkeys(full_names))))
        else:
            given = Given(job.name) if await asyncio.to_thread(add_job, self._jobs, job) else None
        if given is None:
            raise NotAdded("too many orders wait, or the index cannot be written; the log says which")
        return given

    def _refuse_offline(self, pattern: ImagePattern) -> None:
        meant = [name for name in self._config.registries if fnmatchcase(name, pattern.registry)]
        if meant and self._config.offline_registries.issuperset(meant):
            raise Offline(f"{', '.join(meant)}: offline here, so no upstream is asked whether an image has moved")

    def pushed(self, repository: Repository, tag: Tag) -> bool:
        """Add jobs that check a tag after a push; False if they were not added, or the tag is neither cached nor configured."""
        if repository.registry in self._config.offline_registries:
            return False
        configured = any(image.repository == repository and image.may_mean(tag) for image in self._config.selectors())
        if not configured and self._index.tags.get(repository, tag) is None:
            return False
        return all(add_job(self._jobs, job) for job in by_webhook(f"{repository}:{tag}", _RECHECK_AFTER_S))

    def state(self) -> dict[str, Any]:
        """Return the running and waiting jobs, the last finished ones, and the time of the next scheduled run."""
        running = running_jobs(self._jobs)
        return {
            "running": running,
            "waiting": waiting_jobs(self._jobs, running),
            "last": {kind: self._jobs.state(f"last {kind}", dict) or None for kind in ("schedule", "sync", "warm")},
            "next": self._jobs.state("schedule", dict).get("next") if self._config.sync.interval else None,
        }

    async def whole_state(self) -> dict[str, Any]:
        """Return `state`, with the orders that only another node of the cluster carries out."""
        state = await asyncio.to_thread(self.state)
        for order in [] if self.cluster is None else await self.cluster.elsewhere():
            result = order.pop("result")
            state[result].append(order if result == "waiting" else {**order, "result": result})
        return state

    async def job(self, name: str) -> dict[str, Any] | None:
        """Return the state of a job, in a cluster that of all nodes; None if there is none of that name.

        Raises:
            OrdersUnknown: Redis does not answer, and it is no job of this node.
        """
        own = await asyncio.to_thread(job_state, self._jobs, name)
        if self.cluster is None:
            return own
        try:
            return await self.cluster.state(name) or own
        except MirrorError as error:
            if own is None:
                raise OrdersUnknown("Redis does not answer, so orders of other nodes are not known here") from error
            return {**own, "cause": "Redis does not answer, so what other nodes have done is not known"}

    async def cancel(self, name: str) -> None:
        """Have a job cancelled that waits or runs, on all nodes; it ends a moment later.

        Raises:
            NoSuchJob: there is none of that name, or it has ended.
            OrdersUnknown: see `job`.
            NotAdded: the index cannot be written.
        """
        job = await self.job(name)
        if job is None:
            raise NoSuchJob("there is no such order", ended=False)
        if job["result"] not in UNFINISHED:
            raise NoSuchJob(f"order {name} has ended already: {job['result']}", ended=True)
        is_shared = False
        if self.cluster is not None:
            with contextlib.suppress(MirrorError):
                is_shared = await self.cluster.cancel(name)
        own = await asyncio.to_thread(job_state, self._jobs, name)
        is_own = own is not None and own["result"] in UNFINISHED
        if is_own and not await asyncio.to_thread(cancel_job, self._jobs, name) and not is_shared:
            raise NotAdded("the index cannot be written; the log says why")

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the last result of each image, by name; without images that upstream never had, unless they are configured."""
        kept = self._jobs.kept_images()
        return {name: row for name, row in self._jobs.results() if name in kept or not _never_existed(row)}


def _never_existed(result: dict[str, Any]) -> bool:
    return result["result"] == "gone" and result.get("old") is None
