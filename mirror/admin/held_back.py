"""The operations of the admin address on tags that are held back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from mirror.cache.held_tags import HeldImage, HeldTag, HeldTags
from mirror.config.model import Config
from mirror.core.names import ImagePattern
from mirror.metrics import Metrics

_MAX_LISTED: Final = 100


class NothingHeldBack(Exception):
    """Nothing of what an operator has named is held back."""


class HeldBack:
    """Outlives reloads. Each method but `configure` and `release` blocks on the index: call it in a thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def configure(self, config: Config, held_tags: HeldTags) -> None:
        """Use a configuration and what was built from it from now on."""
        self._default_registry = config.default_registry
        self._held_tags = held_tags
        self._metrics.tags_held_back.clear()

    def update_metrics(self) -> None:
        """Count the tags of each registry."""
        for registry, count in self._held_tags.counts().items():
            self._metrics.tags_held_back.labels(registry).set(count)

    def figures(self) -> dict[str, Any]:
        """Return how many tags are held back, and the first of them."""
        found = self._held_tags.all()
        return {"count": len(found), "tags": [_row(one) for one in found[:_MAX_LISTED]]}

    def matching(self, texts: Sequence[str]) -> list[HeldImage]:
        """Return what patterns of images would release.

        Raises:
            InvalidInput: one of them is no pattern.
            NothingHeldBack: nothing is held back that one of them matches.
        """
        found: dict[HeldImage, None] = {}
        for text in texts:
            matching = self._held_tags.matching(ImagePattern.parse(text, self._default_registry))
            if not matching:
                raise NothingHeldBack(f"{text}: nothing of that name is held back")
            found.update(dict.fromkeys(matching))
        return list(found)

    async def release(self, images: Sequence[HeldImage]) -> list[HeldImage]:
        """Let images through on all nodes, and return those that were still held back; the next check of each tag follows."""
        released = [image for image in images if await asyncio.to_thread(self._held_tags.release, image)]
        for image in released:
            await self._held_tags.share_release(image)
        return released


def _row(held: HeldTag) -> dict[str, Any]:
    return {
        "image": f"{held.repository}:{held.tag}",
        "old": None if held.old is None else str(held.old),
        "new": str(held.new),
        "reason": held.reason.value,
        "seen": held.seen,
        "until": held.until,
    }
