"""Routes that were parsed and admitted before."""

from __future__ import annotations

from typing import Final, NamedTuple

from mirror.cache.pull_policy import PullPolicy
from mirror.registry.routing import Route

_MAX_ROUTES: Final = 8192
# Longer targets are parsed each time: their length is the client's to choose.
_MAX_TARGET: Final = 512


class AdmittedRoute(NamedTuple):
    """A route that the pull policy has admitted.

    Attributes:
        constant: it stays admitted until the configuration changes.
    """

    route: Route
    constant: bool


class AdmittedRoutes:
    """A bounded cache of admitted routes by their targets, for one configuration."""

    def __init__(self, pull_policy: PullPolicy) -> None:
        self._pull_policy = pull_policy
        self._routes: dict[str, AdmittedRoute] = {}

    def find(self, target: str) -> AdmittedRoute | None:
        """Return the route of a target if it is admitted now."""
        admitted = self._routes.get(target)
        return admitted if admitted is not None and self.holds(admitted) else None

    def holds(self, admitted: AdmittedRoute) -> bool:
        """Whether a route is still admitted."""
        route = admitted.route
        return admitted.constant or self._pull_policy.is_cached(route.repository, route.reference)

    async def admit(self, route: Route, target: str) -> None:
        """Check a route against the pull policy, and cache it.

        Raises:
            PolicyDenied: the policy refuses it.
        """
        repository, policy = route.repository, self._pull_policy
        if repository is not None:
            await policy.check(repository, route.reference)
        if len(target) <= _MAX_TARGET:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            constant = repository is None or policy.is_constant(repository, route.reference)
            self._routes[target] = AdmittedRoute(route, constant)
