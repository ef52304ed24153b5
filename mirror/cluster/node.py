"""This node's part in a cluster: everything that one process needs for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from mirror.aio import together
from mirror.cluster.accounts import SharedAccounts
from mirror.cluster.breakers import SharedUpstream, SharedUpstreams
from mirror.cluster.events import Events
from mirror.cluster.grants import Grants
from mirror.cluster.kept_tags import KeptTags
from mirror.cluster.keys import Keys
from mirror.cluster.leader import LeaderLease
from mirror.cluster.lease import Leases
from mirror.cluster.link import Link, LinkDown
from mirror.cluster.manifests import SharedManifests, Turn
from mirror.cluster.members import Members
from mirror.cluster.notices import SharedNotices
from mirror.cluster.objects import SharedFacts
from mirror.cluster.orders import SharedOrders
from mirror.cluster.peers import Peers
from mirror.cluster.refusals import Refusals
from mirror.cluster.rounds import SharedRounds
from mirror.cluster.secret import ClusterSecret
from mirror.cluster.sights import SharedSights
from mirror.cluster.source import ClusterSource
from mirror.cluster.tags import SharedTags
from mirror.config.sections import RegistryConfig
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository
from mirror.core.scope import scope_of
from mirror.download.downloads import Downloads
from mirror.storage.blobs import BlobFiles
from mirror.storage.store import Store
from mirror.upstream.http import Http
from mirror.upstream.registry import Registry

# Redis may hang while the mirror stops.
_CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class ClusterNode:
    """The parts of a node in a cluster. They outlive reloads.

    Attributes:
        name: the URL of its address for other nodes.
        http: the client for other nodes.
        scopes: by registry; see `scope_of`.
        objects: what the nodes know of a bucket that they share.
        sweep_leader: elects the node that keeps the limit of that bucket.
    """

    name: str
    link: Link
    keys: Keys
    members: Members
    secret: ClusterSecret
    leases: Leases
    source: ClusterSource
    peers: Peers
    grants: Grants
    manifests: SharedManifests
    tags: SharedTags
    kept_tags: KeptTags
    refusals: Refusals
    sights: SharedSights
    events: Events
    http: Http
    scopes: dict[str, str]
    objects: SharedFacts
    sweep_leader: LeaderLease
    rounds: SharedRounds
    orders: SharedOrders
    upstreams: SharedUpstreams
    accounts: SharedAccounts
    notices: SharedNotices

    def configure(self, registries: Mapping[str, RegistryConfig]) -> None:
        """Use the registries of a configuration from now on."""
        self.scopes.update(
            {name: scope_of(name, entry.upstreams, entry.username) for name, entry in registries.items()},
        )

    def share(self, registries: Mapping[str, Registry], *, again: bool) -> None:
        """Share the breakers, pull limits and logins of the upstreams of a configuration from now on.

        Args:
            again: after a reload.
        """
        for name, registry in registries.items():
            for upstream in registry.upstreams:
                self.accounts.share(name, upstream.name, upstream.login, again=again)
        self.upstreams.share(
            SharedUpstream(
                name, str(upstream.route.endpoint.url), upstream.health, "account" if upstream.login.has_account else ""
            )
            for name, registry in registries.items()
            for upstream in registry.upstreams
        )

    @property
    def is_alone(self) -> bool:
        """Whether Redis does not answer, so that this node fetches for itself."""
        return not self.link.is_up

    def describe(self) -> dict[str, object]:
        """Return the state for operators: `up` or `alone`, the number of nodes, and the node that refuses this one, if any."""
        refusing = self.peers.refusing
        found: dict[str, object] = {"redis": "alone" if self.is_alone else "up", "nodes": self.members.count}
        return found if refusing is None else {**found, "refused_by": refusing}

    def manifest_turn(self, repository: Repository, digest: Digest) -> AbstractAsyncContextManager[Turn]:
        """Wait for a manifest, or for the turn to fetch it; see `SharedManifests.turn`."""
        return self.manifests.turn(repository, digest)

    async def share_release(self, repository: Repository, digest: Digest, reference: Reference) -> None:
        """Release a manifest that is held back on all nodes, for a tag or by its digest; on this node only without Redis."""
        if await self.sights.release(repository, digest, reference):
            scope = self.grants.scope(repository)
            fields: dict[str, str | int] = {"scope": scope, "name": repository.path, "reference": str(reference)}
            with contextlib.suppress(LinkDown):
                await self.events.publish("released", {**fields, "digest": str(digest)})

    async def run(self, store: Store, downloads: Downloads, *, beats: bool) -> None:
        """Keep the link, the beat and the leases, and handle events, until cancelled."""
        await self.http.start()
        layout = store.layout
        await together(
            [
                self.link.run(),
                self.members.run(beats=beats),
                self.leases.run(store.files, downloads),
                self.events.run(layout.events_lock, Path(layout.events_position)),
            ]
        )

    async def drain(self, *, beats: bool) -> None:
        """Say that this node is stopping; its other nodes are not sent new streams any more."""
        self.members.state = "draining"
        if beats:
            await self.members.beat()

    async def close(self, files: BlobFiles, *, beats: bool) -> None:
        """Release the leases, after the downloads have stopped, and close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.leases.close(files)
                if beats:
                    await self.members.leave()
        await self.http.close()
        await self.link.close()
