"""The object graph that a configuration determines. A reload builds another one."""

from __future__ import annotations

import ssl
from typing import TypeAlias

from yarl import URL

from mirror import __version__
from mirror.aio import UseCount
from mirror.cache.cache import Cache
from mirror.cache.context import Context
from mirror.cache.tag_policy import TagPolicies
from mirror.config.model import Config
from mirror.config.sections import RegistryConfig
from mirror.core.counts import Total
from mirror.metrics import Metrics
from mirror.registry.api import RegistryApi
from mirror.registry.routing import Router
from mirror.service.services import Services
from mirror.sync.image_syncer import ImageSyncer
from mirror.sync.plan import Planner
from mirror.sync.scheduler import SyncServices
from mirror.upstream.health import Health
from mirror.upstream.http import Endpoint, Http, Limits
from mirror.upstream.login import Account, Login
from mirror.upstream.registry import Registry
from mirror.upstream.tokens import Tokens
from mirror.upstream.upstream import Upstream

# The health of upstreams by registry, URL and account: another account has another pull limit.
Healths: TypeAlias = dict[tuple[object, ...], Health]


class Graph:
    """Everything that depends on the configuration.

    Attributes:
        in_use: counts the users of the graph; see `Current`.
    """

    def __init__(self, config: Config, http: Http, cache: Cache, api: RegistryApi, sync_services: SyncServices) -> None:
        self.config = config
        self.http = http
        self.cache = cache
        self.api = api
        self.sync_services = sync_services
        self.registries = cache.context.registries
        self.in_use = cache.context.in_use

    async def start(self) -> None:
        """Open the HTTP session, and probe the upstreams that are out of order."""
        await self.http.start()
        for upstream in self._upstreams():
            upstream.start()

    async def hand_over(self) -> None:
        """Stop probing upstreams: the graph that replaces this one does."""
        for upstream in self._upstreams():
            await upstream.hand_over()

    def stop_background(self) -> None:
        """Start no more work that no client waits for."""
        self.cache.prefetch.stop_background()

    async def close(self) -> None:
        """Cancel all upstream requests, and close the connections."""
        await self.cache.close()
        for registry in self.registries.values():
            await registry.close()
        await self.http.close()

    def healths(self) -> Healths:
        """Return the health of each upstream."""
        entries = self.config.registries
        return {
            _health_key(name, url, entries[name]): upstream.health
            for name, registry in self.registries.items()
            if not registry.is_offline
            for url, upstream in zip(entries[name].upstreams, registry.upstreams, strict=True)
        }

    def _upstreams(self) -> list[Upstream]:
        return [upstream for registry in self.registries.values() for upstream in registry.upstreams]


def build(config: Config, services: Services, previous: Graph | None = None) -> Graph:
    """Build the graph of a configuration.

    Args:
        previous: the graph that it replaces; what that knows of the health of the same upstreams is kept.
    """
    downloads, group = config.downloads, services.group
    limits = Limits(connect=downloads.connect_timeout, stall=downloads.stall_timeout)
    http = Http(limits, user_agent=f"registry-mirror/{__version__}", pool=services.connections)
    healths = {} if previous is None else previous.healths()
    registries = {name: build_registry(name, config, http, services.metrics, healths) for name in config.registries}
    if services.node is not None:
        services.node.share(registries, again=previous is not None)
    lazy = frozenset(name for name, entry in config.registries.items() if entry.fill == "ranges")
    context = Context(services.cache, registries, TagPolicies.configured(config), UseCount(), lazy)
    prefetching = group.counts.count(Total.PREFETCHES)
    cache = Cache(config, context, services.downloads, prefetching, services.notifier.notify)
    api = RegistryApi(Router(registries, config.default_registry), cache, services.recheck, group.via_chain)
    syncer = ImageSyncer(cache, config.sync.reserve)
    return Graph(config, http, cache, api, SyncServices(syncer, Planner(config, syncer), config.sync.interval))


def build_registry(name: str, config: Config, http: Http, metrics: Metrics, healths: Healths) -> Registry:
    """Build the client of a configured registry; one that is offline has no upstreams."""
    entry, account = config.registries[name], None
    if entry.username is not None and entry.password_file is not None:
        account = Account(entry.username, entry.password_file)
    tls = ssl.create_default_context(cafile=str(entry.ca_file)) if entry.ca_file else True
    upstreams = []
    for text in [] if name in config.offline_registries else entry.upstreams:
        url, login = URL(text), Login(account, anonymous_fallback=entry.anonymous_fallback)
        endpoint = Endpoint(url, tls, entry.proxy)
        tokens = Tokens(http, endpoint, entry.token_hosts, login)
        health = healths.get(_health_key(name, text, entry)) or Health(name, url.authority, metrics)
        upstreams.append(Upstream(endpoint, http, tokens, health, metrics))
    return Registry(name, upstreams, private=account is not None, reserve=config.sync.reserve)


def _health_key(name: str, url: str, config: RegistryConfig) -> tuple[object, ...]:
    return name, url, config.username, config.password_file
