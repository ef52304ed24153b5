"""Sync jobs: the images to bring in sync, and the origin of the request. The API and the store call jobs orders."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

# `schedule` is the regular resync, `sync` checks what is cached or configured, `warm` fetches any image.
Kind = Literal["schedule", "sync", "warm"]

# Which nodes of a cluster carry it out: all, each one for its own store; one of them; or `own`, only the one that was asked.
Share = Literal["own", "all", "one"]

_SHARES: dict[str, Share] = {"own": "own", "all": "all", "one": "one"}
_KINDS: dict[str, Kind] = {"schedule": "schedule", "sync": "sync", "warm": "warm"}


@dataclass(frozen=True, slots=True)
class SyncJob:
    """What is to be done. Times are seconds since the epoch.

    Attributes:
        name: unique; a later job of the same name replaces an earlier one.
        images: for `sync` patterns, none for everything that a scheduled run checks; for `warm` names, with globs in tags.
        platforms: for `warm`; none for the configured ones.
        asked: when it was created. A tag that was checked later is not checked again.
        after: it does not start earlier.
        by: `schedule`, `operator` or `webhook`.
        share: which nodes of the cluster carry it out.
    """

    name: str
    kind: Kind
    images: tuple[str, ...]
    platforms: tuple[str, ...]
    asked: float
    after: float
    by: str
    share: Share = "own"

    @property
    def created(self) -> float:
        """When it was created; tells it from another job of the same name. A scheduled one continues an earlier round."""
        return self.after if self.kind == "schedule" else self.asked

    def row(self) -> dict[str, Any]:
        """Return its row in the job store."""
        row = {
            "kind": self.kind,
            "images": list(self.images),
            "platforms": list(self.platforms),
            "asked": self.asked,
            "after": self.after,
            "by": self.by,
        }
        return row if self.share == "own" else {**row, "share": self.share}

    def is_due(self, now: float) -> bool:
        """Whether it may start. A job from the future is due: the clock was set back after it was created."""
        return not self.asked <= now < self.after

    @classmethod
    def read(cls, name: str, row: dict[str, Any]) -> SyncJob | None:
        """Parse a row of the job store; None for an invalid one."""
        try:
            images, platforms = (tuple(str(entry) for entry in row[key]) for key in ("images", "platforms"))
            kind, share = _KINDS[row["kind"]], _SHARES[row.get("share", "own")]
            asked, after = float(row["asked"]), float(row["after"])
            return cls(name, kind, images, platforms, asked, after, str(row["by"]), share) if isfinite(asked + after) else None
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class Given:
    """A job that was added.

    Attributes:
        untold: why the other nodes of the cluster were not told of it; None if they were, or there are none.
    """

    name: str
    untold: str | None = None


def by_operator(kind: Kind, images: tuple[str, ...], platforms: tuple[str, ...] = ()) -> SyncJob:
    """Return a job that is due at once."""
    now = time.time()
    return SyncJob(f"{time.time_ns()}-{os.urandom(4).hex()}", kind, images, platforms, now, now, "operator")


def by_webhook(image: str, pause: float) -> tuple[SyncJob, SyncJob]:
    """Return a job that checks an image now, and one that checks it again after `pause` seconds.

    Their names depend on the image alone, so that many pushes of it leave one job of each.
    """
    now = time.time()
    first, again = (
        SyncJob(f"webhook-{word}-{image}", "sync", (image,), (), now, now + wait, "webhook")
        for word, wait in (("now", 0.0), ("again", pause))
    )
    return first, again
