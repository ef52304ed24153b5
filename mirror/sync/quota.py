"""How much of an upstream's pull limit syncing may use."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.core.names import Repository
from mirror.errors import UpstreamRateLimited
from mirror.upstream.registry import Registry


class SyncQuota:
    """Leaves a part of each registry's pull limit to clients.

    Args:
        reserve: pulls that are left to clients.
    """

    def __init__(self, registries: Mapping[str, Registry], reserve: int) -> None:
        self._registries = registries
        self._reserve = reserve

    def allows(self, registry: str) -> bool:
        """Whether upstream is in order, and more of its pull limit is left than clients' part."""
        found = self._registries.get(registry)
        return found is not None and found.allows_background(self._reserve)

    def check(self, repository: Repository) -> None:
        """Return if a request may be sent upstream.

        Raises:
            UpstreamRateLimited: it may not.
            Offline: nothing of the registry is ever asked.
        """
        found = self._registries.get(repository.registry)
        if found is not None:
            found.refuse_offline()
        obstacle = f"{repository.registry} is not mirrored any more" if found is None else found.obstacle(self._reserve)
        if obstacle is not None:
            raise UpstreamRateLimited(obstacle)
