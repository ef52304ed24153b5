"""The state of an export, as the processes of a store tell each other and operators."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

from mirror.storage.job_store import JobStore
from mirror.sync.progress import Progress
from mirror.transfer.collector import ImageReport

# A bundle may have ten thousand images; its row in the index names so many, and tells of so many.
_MAX_NAMES: Final = 10
_MAX_REPORTS: Final = 1000
# The process that writes a state does so each second.
_LOST_AFTER_S: Final = 30.0

Phase = Literal["finding", "fetching", "sending", "ended"]
Result = Literal["running", "completed", "failed", "cut"]


@dataclass
class ExportState:
    """The state of an export. Times are seconds since the epoch.

    Attributes:
        result: `cut` if the client has disconnected.
        phase: `finding` manifests, `fetching` what is missing, `sending`, `ended`.
        image: the one that is being found or fetched, or whose content is being sent.
        done: images that have been found, or fetched, or are in the bundle.
        total: all images, as soon as they are known.
        bytes: of the current image that are held, or of the bundle that were sent.
        size: of the current image, or of the bundle.
        cause: why it has failed.
        contents: what the bundle has of each image, once it has ended; of the first thousand.
    """

    name: str
    client: str
    images: list[str]
    began: float = field(default_factory=time.time)
    updated: float = 0.0
    result: Result = "running"
    phase: Phase = "finding"
    image: str | None = None
    done: int = 0
    total: int = 0
    bytes: int = 0
    size: int = 0
    cause: str | None = None
    contents: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, phase: Phase, total: int) -> None:
        """Begin a phase over so many images."""
        self.phase, self.done, self.total, self.bytes, self.size = phase, 0, total, 0, 0

    def follow(self, progress: Progress | None) -> None:
        """Take the figures of an image that is being fetched."""
        if progress is not None:
            snapshot = progress.snapshot()
            self.image, self.bytes, self.size = snapshot["image"], snapshot["bytes"], snapshot["size"]

    def report(self, report: ImageReport) -> None:
        """Add what the bundle has of an image."""
        if len(self.contents) < _MAX_REPORTS:
            self.contents.append(asdict(report))

    def row(self) -> dict[str, Any]:
        """Return its row in the job store."""
        more = max(0, len(self.images) - _MAX_NAMES)
        contents = self.contents if self.phase == "ended" else []
        # Not by asdict, which copies all names and contents.
        row = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**row, "images": self.images[:_MAX_NAMES], "more": more, "contents": contents, "updated": time.time()}


def read_states(jobs: JobStore) -> Iterator[dict[str, Any]]:
    """Yield the states of running and lately ended exports; those whose process has died have failed."""
    for row in jobs.exports():
        if row["result"] == "running" and time.time() - row["updated"] > _LOST_AFTER_S:
            yield {**row, "result": "failed", "phase": "ended", "cause": "the process that wrote it has ended"}
        else:
            yield row
