"""Paths of the registry address: parsed from the right, because names contain slashes, and remembered once admitted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from mirror.cache.pull_policy import PullPolicy
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import DOCKER_HUB, Reference, Repository, canonical_registry, parse_reference
from mirror.core.registries import is_known_host
from mirror.errors import NotFound
from mirror.listener.responses import Target

Kind = Literal["about", "ping", "catalog", "search_ping", "search", "manifest", "blob", "tags", "referrers"]


# Paths beside those of the OCI distribution API. Docker and podman search by the first version of Docker's API.
_PATHS: Final[Mapping[str, Kind]] = {"": "about", "/": "about", "/v1/_ping": "search_ping", "/v1/search": "search"}


class InvalidTarget(InvalidInput):
    """A target that is no valid path and query."""

    what = "target"


@dataclass(frozen=True, slots=True)
class Route:
    """A parsed target.

    Attributes:
        path: as the client sent it, without the query; Link headers are built from it.
        query: the parameters, in order.
    """

    kind: Kind
    repository: Repository | None = None
    reference: Reference | None = None
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()

    @property
    def target(self) -> Target:
        """What is asked for, in the form of the log and the metrics."""
        return Target(self.kind, self.repository, self.reference)

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter, or None."""
        return next((value for key, value in self.query if key == name), None)


class Router:
    """Parses targets for a set of configured registries."""

    def __init__(self, registries: Collection[str], default: str) -> None:
        self._registries = frozenset(registries)
        self._default = default

    def route(self, target: str) -> Route | None:
        """Parse a request's target; None if the path is unknown.

        Raises:
            InvalidInput: a name, tag or digest, or the whole target, is malformed.
            NotFound: `ns`, or the first component of the name, is a registry that is not configured.
        """
        raw, _, raw_query = _origin_form(target).partition("?")
        try:
            query = tuple(parse_qsl(raw_query, keep_blank_values=True, max_num_fields=20))
            path = unquote(raw, errors="strict")
        except ValueError as error:
            raise InvalidTarget(target, "not UTF-8, or with too many parameters") from error
        if path in _PATHS:
            return Route(_PATHS[path], path=raw, query=query)
        prefix, found, rest = path.partition("/v2")
        if not found or (rest and not rest.startswith("/")):
            return None
        if prefix and not self._is_registry(prefix.removeprefix("/")):
            return None
        if rest in ("", "/"):
            return Route("ping")
        if rest == "/_catalog":
            return Route("catalog", path=raw, query=query)
        return self._content(prefix.removeprefix("/"), rest[1:], raw, query)

    def _content(self, prefix: str, rest: str, path: str, query: tuple[tuple[str, str], ...]) -> Route | None:
        name, kind, last = self._split(rest)
        if kind is None or not name:
            return None
        repository = self._repository(prefix, name, dict(query).get("ns"))
        if kind == "tags":
            return Route("tags", repository, None, path, query)
        if kind == "manifests":
            return Route("manifest", repository, parse_reference(last), path, query)
        digest = Digest.parse(last)
        return Route("blob" if kind == "blobs" else "referrers", repository, digest, path, query)

    @property
    def registries(self) -> frozenset[str]:
        """The configured registries."""
        return self._registries

    @staticmethod
    def _split(rest: str) -> tuple[str, str | None, str]:
        head, _, last = rest.rpartition("/")
        name, _, kind = head.rpartition("/")
        if kind in ("manifests", "blobs", "referrers") or (kind == "tags" and last == "list"):
            return name, kind, last
        return rest, None, ""

    def _repository(self, prefix: str, name: str, namespace: str | None) -> Repository:
        if namespace:
            registry = self._mirrored(namespace)
            return Repository.parse(registry, _without(registry, name))
        if prefix:
            return Repository.parse(prefix, _without(prefix, name))
        first, _, others = name.partition("/")
        if others and (self._is_registry(first) or self._means_registry(first)):
            return Repository.parse(self._mirrored(first), others)
        return Repository.parse(self._default, name)

    def _means_registry(self, first: str) -> bool:
        """Whether the first of several components can only be a registry's host, and no namespace of the default registry.

        Namespaces of Docker Hub have no dots; those of other registries may.
        """
        return ":" in first or is_known_host(first) or (self._default == DOCKER_HUB and "." in first)

    def _mirrored(self, text: str) -> str:
        """The registry that a client names; raises NotFound if it is not configured."""
        registry = canonical_registry(text)
        if registry not in self._registries:
            raise NotFound(f"registry {text[:100]!r} is not mirrored here")
        return registry

    def _is_registry(self, text: str) -> bool:
        return text in self._registries


def _without(registry: str, name: str) -> str:
    """A name without its registry: containerd sends both `ns` and the path that its hosts.toml gives the mirror."""
    return name.removeprefix(f"{registry}/")


def _origin_form(target: str) -> str:
    """The path and query of a target; clients send proxies the absolute form (RFC 9112 section 3.2.2)."""
    scheme, colon, rest = target.partition("://")
    if not colon or scheme.lower() not in ("http", "https"):
        return target
    _, slash, path = rest.partition("/")
    return slash + path


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
