"""The operations of the admin address on sync jobs: jobs wait in the store, and the process that syncs carries them out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import structlog

from mirror.config.model import Config
from mirror.core.errors import InvalidRegistry
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.errors import Offline
from mirror.storage.store import Store
from mirror.sync.job import SyncJob, by_operator, by_webhook

log = structlog.get_logger(__name__)

UNFINISHED = frozenset({"waiting", "running"})
"""The results of jobs that have not ended."""

# Jobs that may wait; each is a row of the job store.
_MAX_JOBS = 1000
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


class SyncOperations:
    """Outlives reloads. Each method but `configure` blocks on the index: call it in a thread."""

    def __init__(self, store: Store) -> None:
        self._index = store.index
        self._jobs = store.jobs

    def configure(self, config: Config) -> None:
        """Use a configuration from now on."""
        self._config = config

    def sync(self, images: list[str]) -> str | None:
        """Add a job that checks cached and configured images now, all of them if none are named.

        Returns the job's name; None (logged) if too many jobs wait or the index cannot be written.

        Raises:
            InvalidInput: one of the names.
            Offline: every registry that one of them means is offline.
        """
        for text in images or ["*/*"]:
            self._refuse_offline(ImagePattern.parse(text, self._config.default_registry))
        return self._add(by_operator("sync", tuple(images)))

    def warm(self, images: list[str], platforms: list[str]) -> str | None:
        """Add a job that fetches images. Returns and raises like `sync`."""
        registries = self._config.registries
        for text in images:
            registry = ImageSelector.parse(text, self._config.default_registry).repository.registry
            if registry not in registries:
                raise InvalidRegistry(registry, f"not mirrored here; there are {', '.join(sorted(registries))}")
            if registry in self._config.offline_registries:
                raise Offline(f"{text}: {registry} is offline here, so nothing is fetched")
        return self._add(by_operator("warm", tuple(images), tuple(platforms)))

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
        return all(self._add(job) is not None for job in by_webhook(f"{repository}:{tag}", _RECHECK_AFTER_S))

    def state(self) -> dict[str, Any]:
        """Return the running and waiting jobs, the last finished ones, and the time of the next scheduled run."""
        running = [run for run in self._jobs.state("running", list) if isinstance(run, dict) and "name" in run]
        started = {run["name"] for run in running}
        jobs = ((SyncJob.read(name, row), row.get("more", 0)) for name, row in self._jobs.pending() if name not in started)
        return {
            "running": running,
            "waiting": [{"name": job.name, **job.row(), "more": more} for job, more in jobs if job is not None],
            "last": {kind: self._jobs.state(f"last {kind}", dict) or None for kind in ("schedule", "sync", "warm")},
            "next": self._jobs.state("schedule", dict).get("next") if self._config.sync.interval else None,
        }

    def job(self, name: str) -> dict[str, Any] | None:
        """Return the state of a job; None if there is none of that name."""
        state = self.state()
        found = self._jobs.done(name)
        if found is None:
            found = next((run for run in state["running"] if run["name"] == name), None)
        if found is None:
            found = next(({**job, "result": "waiting"} for job in state["waiting"] if job["name"] == name), None)
        return found

    def cancel(self, name: str) -> bool:
        """Have a job cancelled that waits or runs; it ends a moment later. False if the index cannot be written.

        Raises:
            NoSuchJob: there is none of that name, or it has ended.
        """
        job = self.job(name)
        if job is None:
            raise NoSuchJob("there is no such order", ended=False)
        if job["result"] not in UNFINISHED:
            raise NoSuchJob(f"order {name} has ended already: {job['result']}", ended=True)
        created = float(job["created"] if "created" in job else job["asked"])
        self._jobs.put_cancellation(name, created)
        return self._jobs.is_cancelled(name, created)

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the last result of each image, by name; without images that upstream never had, unless they are configured."""
        kept = self._jobs.kept_images()
        return {name: row for name, row in self._jobs.results() if name in kept or not _never_existed(row)}

    def _add(self, job: SyncJob) -> str | None:
        if self._jobs.count_pending() >= _MAX_JOBS or not self._jobs.put(job.name, job.row()):
            log.warning("order_refused", order=job.name, most=_MAX_JOBS)
            return None
        return job.name


def _never_existed(result: dict[str, Any]) -> bool:
    return result["result"] == "gone" and result.get("old") is None
