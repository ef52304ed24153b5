"""The object graph: from a configuration to something that answers requests. Rebuilt whole when the configuration changes."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from yarl import URL

from mirror import __version__
from mirror.aio import UseCount
from mirror.cache.blobs import Blobs
from mirror.cache.catalog import Catalog
from mirror.cache.content import CachedContent
from mirror.cache.context import CacheServices, Context
from mirror.cache.listings import Listings
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.manifest_by_tag import ManifestByTag
from mirror.cache.manifests import Manifests
from mirror.cache.prefetch import Prefetch, share
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.tag_policy import TagPolicies, TagPolicy, TagRule
from mirror.cache.tag_store import TagStore
from mirror.config.model import Config
from mirror.config.sections import RegistryConfig
from mirror.core.counts import Total
from mirror.core.names import PathPattern, canonical_registry
from mirror.core.policy import Policy
from mirror.errors import CredentialsRefused
from mirror.metrics import Metrics
from mirror.registry.api import Cache, RegistryApi
from mirror.registry.routing import Router
from mirror.service.services import Services
from mirror.sync.attachments import AttachmentSyncer
from mirror.sync.image_syncer import ImageSyncer
from mirror.sync.plan import Planner
from mirror.sync.scheduler import SyncServices
from mirror.upstream.health import Health
from mirror.upstream.http import Http, Limits
from mirror.upstream.login import Credentials, Login
from mirror.upstream.registry import Registry
from mirror.upstream.tokens import Tokens
from mirror.upstream.upstream import Upstream

# What is known of upstreams, by registry, URL and account: with another account the pull limit is another one, too.
Healths: TypeAlias = dict[tuple[object, ...], Health]


@dataclass(frozen=True, eq=False)
class Graph:
    """Everything that depends on the configuration.

    Attributes:
        in_use: counts those who work with it; see `Current`.
    """

    config: Config
    http: Http
    registries: dict[str, Registry]
    manifests: Manifests
    blobs: Blobs
    listings: Listings
    prefetch: Prefetch
    policies: TagPolicies
    sync_services: SyncServices
    admin_token: str | None
    api: RegistryApi
    in_use: UseCount

    async def start(self) -> None:
        """Open the connections' session, and watch upstreams that are known to be out of order."""
        await self.http.start()
        for upstream in self._upstreams():
            upstream.start()

    async def rest(self) -> None:
        """Leave upstreams that are out of order to the graph that has taken the place of this one."""
        for upstream in self._upstreams():
            await upstream.rest()

    def stop_background(self) -> None:
        """Begin nothing more that no client has asked for: another graph takes over, or the mirror is about to stop."""
        self.prefetch.stop_background()

    async def close(self) -> None:
        """Stop what asks upstream."""
        await self.prefetch.close()
        await self.manifests.close()
        await self.blobs.close()
        await self.listings.close()
        for registry in self.registries.values():
            await registry.close()
        await self.http.close()

    def healths(self) -> Healths:
        """What is known of the upstreams."""
        entries = self.config.registries
        return {
            _account(name, url, entries[name]): upstream.health
            for name, registry in self.registries.items()
            for url, upstream in zip(entries[name].upstreams, registry.upstreams, strict=True)
        }

    def _upstreams(self) -> list[Upstream]:
        return [upstream for registry in self.registries.values() for upstream in registry.upstreams]


def build(config: Config, services: Services, previous: Graph | None = None) -> Graph:
    """Put the parts together.

    Args:
        services: what it works with and does not own.
        previous: the graph whose place it takes; what that has learned of the same upstreams stays known.
    """
    store, metrics, in_use = services.store, services.metrics, UseCount()
    healths = {} if previous is None else previous.healths()
    http = Http(
        Limits(
            connect=config.downloads.connect_timeout,
            stall=config.downloads.stall_timeout,
        ),
        user_agent=f"registry-mirror/{__version__}",
        pool=services.connections,
    )
    registries = {name: _registry(name, entry, http, metrics, healths) for name, entry in config.registries.items()}
    policies = _policies(config)
    cache = CacheServices(store, services.access, services.usage, metrics, services.janitor.make_room)
    context = Context(cache, registries, policies, in_use)
    content = CachedContent(context)
    rules = {name: Policy.parse(entry.allow, entry.deny, name) for name, entry in config.registries.items()}
    pull_policy = PullPolicy(context, rules)
    blobs, listings = Blobs(context, content, services.downloads, pull_policy), Listings(context, pull_policy)
    at_once = share(config.downloads.max_upstream_connections) if config.downloads.prefetch else 0
    running = services.group.counts.count(Total.PREFETCHES)
    prefetch = Prefetch(context, blobs, services.downloads, at_once, running)
    by_digest, tag_store = ManifestByDigest(context, content, prefetch), TagStore(context, services.notifier.moved)
    manifests = Manifests(context, by_digest, ManifestByTag(context, content, by_digest, tag_store, pull_policy), prefetch)
    default = canonical_registry(config.default_registry)
    router, catalog = Router(registries, default), Catalog(store.index, pull_policy, default)
    pulls = Cache(pull_policy, manifests, blobs, listings, catalog)
    api = RegistryApi(router, pulls, metrics, services.recheck, services.group.via_chain)
    token = config.admin.token_file.read_text().strip() if config.admin.token_file else None
    attachments = AttachmentSyncer(pull_policy, by_digest, tag_store, blobs, listings)
    syncer = ImageSyncer(context, by_digest, tag_store, blobs, pull_policy, attachments, config.sync.reserve)
    sync_services = SyncServices(syncer, _planner(config, syncer, pull_policy), config.sync.interval)
    return Graph(config, http, registries, manifests, blobs, listings, prefetch, policies, sync_services, token, api, in_use)


def _planner(config: Config, syncer: ImageSyncer, pull_policy: PullPolicy) -> Planner:
    return Planner(
        config.wanted(),
        config.sync.platforms,
        config.sync.active_within,
        syncer.tags,
        pull_policy.may_list,
        canonical_registry(config.default_registry),
    )


def _policies(config: Config) -> TagPolicies:
    tags = config.tags
    general = TagPolicy(tags.ttl, tags.stale_if_error, tags.not_found_ttl, tags.revalidate_timeout)
    rules = {
        name: tuple(TagRule(PathPattern.parse(rule.match, name), rule.ttl, rule.pin) for rule in entry.tags)
        for name, entry in config.registries.items()
    }
    kept = frozenset(name for name, entry in config.registries.items() if entry.keep_deleted)
    return TagPolicies(general, rules, kept)


def _registry(name: str, config: RegistryConfig, http: Http, metrics: Metrics, healths: Healths) -> Registry:
    tls = ssl.create_default_context(cafile=str(config.ca_file)) if config.ca_file else True
    upstreams = []
    for text in config.upstreams:
        url, login = URL(text), Login(_credentials(config), anonymous_fallback=config.anonymous_fallback)
        tokens = Tokens(http, url, config.token_hosts, login, tls=tls, proxy=config.proxy)
        health = healths.get(_account(name, text, config))
        upstreams.append(Upstream(name, url, http, tokens, metrics, tls=tls, proxy=config.proxy, health=health))
    return Registry(name, upstreams, private=config.username is not None)


def _account(name: str, url: str, config: RegistryConfig) -> tuple[object, ...]:
    return name, url, config.username, config.password_file


def _credentials(config: RegistryConfig) -> Callable[[], Credentials] | None:
    """Reads the password afresh each time, so that a new one is used as soon as it is there."""
    username, path = config.username, config.password_file
    return None if username is None else lambda: Credentials(username, _password(path))


def _password(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsRefused(
            f"password_file {path} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
        ) from error
