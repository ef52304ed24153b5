"""The object graph: from a configuration to something that answers requests. Rebuilt whole when the configuration changes."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from mirror import __version__
from mirror.config import Config, RegistryConfig
from mirror.core.names import PathPattern, canonical_registry
from mirror.core.policy import Policy
from mirror.download.downloads import Downloads
from mirror.errors import CredentialsRefused
from mirror.metrics import Metrics
from mirror.pull.blobs import Blobs
from mirror.pull.bydigest import ByDigest
from mirror.pull.bytag import ByTag
from mirror.pull.catalog import Catalog
from mirror.pull.context import Context
from mirror.pull.holdings import Holdings
from mirror.pull.listings import Listings
from mirror.pull.manifests import Manifests
from mirror.pull.permission import Permission
from mirror.pull.prefetch import Prefetch, share
from mirror.pull.records import Records
from mirror.pull.settings import TagPolicies, TagPolicy, TagRule
from mirror.pull.usage import Usage
from mirror.service.store import Store
from mirror.tracing import Trail
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.http import Http, Limits
from mirror.upstream.login import Credentials, Login
from mirror.upstream.registry import Registry
from mirror.upstream.tokens import Tokens
from mirror.web.registry_api import RegistryApi
from mirror.web.routing import Router


@dataclass(frozen=True)
class Graph:
    """Everything that depends on the configuration."""

    config: Config
    http: Http
    registries: dict[str, Registry]
    manifests: Manifests
    blobs: Blobs
    listings: Listings
    prefetch: Prefetch
    policies: TagPolicies
    admin_token: str | None
    api: RegistryApi

    async def start(self) -> None:
        """Open the connections' session."""
        await self.http.start()

    async def resign(self) -> None:
        """Begin nothing more that no client has asked for: another graph takes over, or the mirror is about to stop."""
        await self.prefetch.close()

    async def close(self) -> None:
        """Stop what asks upstream."""
        await self.resign()
        await self.manifests.close()
        await self.blobs.close()
        await self.listings.close()
        for registry in self.registries.values():
            await registry.close()
        await self.http.close()


def build(
    config: Config,
    store: Store,
    downloads: Downloads,
    metrics: Metrics,
    usage: Usage,
    make_room: Callable[[int], Awaitable[None]],
    workers: int = 1,
    trail: Trail | None = None,
) -> Graph:
    """Put the parts together."""
    # The limit is the mirror's, whatever the number of its processes.
    blob_connections = max(1, config.downloads.max_upstream_connections // workers)
    http = Http(
        Limits(
            connect=config.downloads.connect_timeout,
            stall=config.downloads.stall_timeout,
            blob_connections=blob_connections,
        ),
        user_agent=f"registry-mirror/{__version__}",
    )
    registries = {name: _registry(name, entry, http, metrics) for name, entry in config.registries.items()}
    policies = _policies(config)
    context = Context(
        registries=registries,
        private=frozenset(name for name, entry in config.registries.items() if entry.username is not None),
        files=store.files,
        index=store.index,
        generation=store.generation,
        executor=store.executor,
        metrics=metrics,
        policies=policies,
        usage=usage,
        make_room=make_room,
    )
    holdings = Holdings(context)
    blobs, listings = Blobs(context, holdings, downloads), Listings(context)
    prefetch = Prefetch(context, blobs, downloads, share(blob_connections) if config.downloads.prefetch else 0)
    by_digest, records = ByDigest(context, holdings, prefetch), Records(context)
    manifests = Manifests(context, by_digest, ByTag(context, holdings, by_digest, records), prefetch)
    default = canonical_registry(config.default_registry)
    permission = Permission(context, {name: _policy(name, entry) for name, entry in config.registries.items()})
    router, catalog = Router(registries, default), Catalog(store.index, default)
    api = RegistryApi(router, permission, manifests, blobs, listings, catalog, metrics, trail)
    token = config.admin.token_file.read_text().strip() if config.admin.token_file else None
    return Graph(config, http, registries, manifests, blobs, listings, prefetch, policies, token, api)


def _policies(config: Config) -> TagPolicies:
    general = TagPolicy(config.tags.ttl, config.tags.stale_if_error, config.tags.not_found_ttl)
    rules = {
        name: tuple(TagRule(PathPattern.parse(rule.match, name), rule.ttl, rule.pin) for rule in entry.tags)
        for name, entry in config.registries.items()
    }
    kept = frozenset(name for name, entry in config.registries.items() if entry.keep_deleted)
    return TagPolicies(general, rules, kept)


def _policy(name: str, config: RegistryConfig) -> Policy:
    allow, deny = (tuple(PathPattern.parse(rule, name) for rule in rules) for rules in (config.allow, config.deny))
    return Policy(allow, deny)


def _registry(name: str, config: RegistryConfig, http: Http, metrics: Metrics) -> Registry:
    tls = ssl.create_default_context(cafile=str(config.ca_file)) if config.ca_file else True
    accepted: dict[str, bool] = {}
    endpoints = []
    for text in config.upstreams:
        url = URL(text)

        def told(ok: bool, upstream: str = text) -> None:
            accepted[upstream] = ok
            metrics.upstream_credentials_ok.labels(name).set(1 if all(accepted.values()) else 0)

        login = Login(_credentials(config), told, anonymous_fallback=config.anonymous_fallback)
        tokens = Tokens(http, url, config.token_hosts, login, tls=tls, proxy=config.proxy)
        endpoints.append(Endpoint(name, url, http, tokens, metrics, tls=tls, proxy=config.proxy))
    return Registry(name, endpoints)


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
