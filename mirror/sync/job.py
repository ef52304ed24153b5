"""Orders: what is to be brought in sync, on whose word."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Literal

# `schedule` is the resync by itself, `sync` looks at what is held, `warm` brings what may not be.
Kind = Literal["schedule", "sync", "warm"]

_KINDS: dict[str, Kind] = {"schedule": "schedule", "sync": "sync", "warm": "warm"}


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done. Times are seconds since the epoch.

    Attributes:
        name: unique; a later order of the same name replaces an earlier one.
        images: for `sync` patterns, none for everything that a scheduled run would look at; for `warm` names, with globs in tags.
        platforms: for `warm`; none for what the configuration says.
        asked: when it was given. What was checked since needs no other check.
        after: not to be begun before.
        by: who gave it: `schedule`, `operator` or `webhook`.
    """

    name: str
    kind: Kind
    images: tuple[str, ...]
    platforms: tuple[str, ...]
    asked: float
    after: float
    by: str

    def row(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "kind": self.kind,
            "images": list(self.images),
            "platforms": list(self.platforms),
            "asked": self.asked,
            "after": self.after,
            "by": self.by,
        }

    def is_due(self, now: float) -> bool:
        """Whether it may begin; one from the future was given before the clock was set back."""
        return not self.asked <= now < self.after

    @classmethod
    def read(cls, name: str, row: dict[str, Any]) -> Order | None:
        """From the ledger; None for what is no order."""
        try:
            images, platforms = (tuple(str(entry) for entry in row[key]) for key in ("images", "platforms"))
            return cls(name, _KINDS[row["kind"]], images, platforms, float(row["asked"]), float(row["after"]), str(row["by"]))
        except (KeyError, TypeError, ValueError):
            return None


def by_operator(kind: Kind, images: tuple[str, ...], platforms: tuple[str, ...] = ()) -> Order:
    """An order to be carried out at once."""
    now = time.time()
    return Order(f"{time.time_ns()}-{os.urandom(4).hex()}", kind, images, platforms, now, now, "operator")


def by_webhook(image: str, pause: float) -> tuple[Order, Order]:
    """To look at an image at once, and once more after `pause` seconds: upstream tells of a push before all of it answers so.

    However often upstream tells, one order of each stands.
    """
    now = time.time()
    first, again = (
        Order(f"webhook-{word}-{image}", "sync", (image,), (), now, now + wait, "webhook")
        for word, wait in (("now", 0.0), ("again", pause))
    )
    return first, again
