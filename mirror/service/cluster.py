"""A node of a cluster: builds its parts, and serves the address for other nodes. Imported only if a cluster is configured."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from aiohttp import web

from mirror import __version__
from mirror.cache.access_index import AccessIndex
from mirror.cache.cluster_facts import ClusterFacts
from mirror.cluster.accounts import SharedAccounts
from mirror.cluster.address import advertised
from mirror.cluster.breakers import SharedUpstreams
from mirror.cluster.events import Events
from mirror.cluster.grants import Grants
from mirror.cluster.identity import Identity
from mirror.cluster.kept_tags import KeptTags
from mirror.cluster.keys import Keys
from mirror.cluster.leader import LeaderLease
from mirror.cluster.lease import Leases
from mirror.cluster.link import Link
from mirror.cluster.manifests import SharedManifests
from mirror.cluster.members import Members
from mirror.cluster.news import News
from mirror.cluster.node import ClusterNode
from mirror.cluster.notices import SharedNotices
from mirror.cluster.objects import SharedFacts
from mirror.cluster.orders import SharedOrders
from mirror.cluster.peers import Peers
from mirror.cluster.redis_connections import RedisAddress
from mirror.cluster.refusals import Refusals
from mirror.cluster.rounds import SharedRounds
from mirror.cluster.secret import ClusterSecret
from mirror.cluster.sights import SharedSights
from mirror.cluster.source import ClusterSource
from mirror.cluster.tags import SharedTags
from mirror.config.cluster import ClusterTls, secrets_in
from mirror.config.model import Config
from mirror.config.tls import client_context, server_context
from mirror.core.byte_rate import ByteRate
from mirror.core.counts import CountTable, Total
from mirror.download.downloads import Downloads
from mirror.listener.admission import Handlers
from mirror.listener.connections import Bounds
from mirror.listener.listener import Listener
from mirror.listener.responses import problem_response
from mirror.maintenance.cluster_purge import ClusterPurge
from mirror.metrics import Metrics
from mirror.registry.peer_api import PeerApi
from mirror.registry.routing import Router
from mirror.service.graph import Graph
from mirror.service.services import Services
from mirror.storage.store import Store
from mirror.upstream.http import Http, Limits
from mirror.upstream.intake import Intake

# A node on the same network answers at once.
_MAX_CONNECT_S = 1.0
# Until a node says that it has no byte yet: long before the other one takes it for dead.
_MAX_WAIT_S = 1.0
# Of all nodes together. The tree keeps the number of streams of one blob small.
_MAX_CONNECTIONS = 2000
# Redis may hang.
_STOP_TIMEOUT_S = 3.0


def build_node(config: Config, services: Services, access: AccessIndex, downloads: Downloads) -> ClusterNode:
    """Build this node's part in the cluster; `ClusterNode.configure` has to follow."""
    cluster, metrics, connections = config.cluster, services.metrics, services.connections
    name = services.group.node or advertised(cluster)
    me = Identity(name, cluster.zone)
    assert cluster.redis.url is not None
    assert cluster.secret_file is not None
    redis = cluster.redis
    scopes: dict[str, str] = {}
    keys = Keys(cluster.name, scopes.__getitem__)
    address = RedisAddress(cluster.redis.url, redis.timeout, redis.password_file, redis.ca_file)
    link = Link(address, metrics.cluster_calls, keys.probe)
    secret = ClusterSecret(cluster.secret_file, secrets_in(cluster.secret_file.read_text()))
    http = Http(_limits(cluster.stall_timeout), f"registry-mirror/{__version__}", connections)
    # The rate of `downloads.max_rate` is for upstreams.
    intake = Intake(connections.intake.buffers, ByteRate(CountTable.private()))
    peers = Peers(http, intake, secret, metrics.bytes_from_nodes.inc, _client_tls(cluster.tls))
    peers.me, peers.poisoned, peers.refused = name, metrics.cluster_poisoned.inc, metrics.cluster_refused.inc
    leases, grants = Leases(link, keys, me, cluster.fan_out), Grants(link, keys, access.record_grant)
    source = ClusterSource(leases, peers, grants, downloads.is_under_way, metrics.cluster_takeovers)
    members, counts = Members(link, keys, me, secret, metrics), services.group.counts
    news, process = News(link, keys, name, counts.count(Total.NEWS)), f"{name} {counts.own}"
    metrics.cluster_alone.set_function(lambda: not link.is_up)
    node = ClusterNode(
        name=name,
        link=link,
        keys=keys,
        members=members,
        secret=secret,
        leases=leases,
        source=source,
        peers=peers,
        grants=grants,
        manifests=SharedManifests(link, keys, me, peers.manifest),
        tags=SharedTags(link, keys, name),
        kept_tags=KeptTags(link, keys),
        refusals=Refusals(link, keys, name),
        sights=SharedSights(link, keys),
        events=Events(link, keys, name),
        http=http,
        scopes=scopes,
        objects=SharedFacts(link, keys, source.follows),
        sweep_leader=LeaderLease(link, keys.leader("sweep"), name),
        rounds=SharedRounds(link, keys.sync_round),
        orders=SharedOrders(link, keys, name),
        upstreams=SharedUpstreams(news, members, process, metrics),
        accounts=SharedAccounts(news, secret, process),
        notices=SharedNotices(link, keys, takes_over=counts.own == 0),
    )
    ClusterFacts(services.store, access).subscribe(node)
    return node


class NodeServer:
    """Serves the address for other nodes, and keeps this node in the cluster.

    Of several processes of a node, one beats for it.

    Attributes:
        purge: purges the other nodes, too.
    """

    def __init__(self, config: Config, node: ClusterNode, store: Store, metrics: Metrics, counts: CountTable) -> None:
        self.purge = ClusterPurge(store, metrics, node)
        self._config = config.cluster
        self._node = node
        self._store = store
        self._beats = counts.own == 0
        self._is_stopping = False
        self._running: asyncio.Task[None] | None = None
        self._listener = Listener(Handlers("cluster", self._handle, self._handle, problem_response), metrics, counts)

    @property
    def in_progress(self) -> int:
        """Requests of other nodes that are not answered yet."""
        return self._listener.in_progress

    def configure(self, graph: Graph) -> None:
        """Use a graph from now on."""
        self._graph = graph
        router = Router(graph.registries, graph.config.default_registry)
        wait_s = min(_MAX_WAIT_S, self._config.stall_timeout / 6)
        self._api = PeerApi(router, graph.cache.blobs, self._node, wait_s)

    def open(self, sock: socket.socket, relieve: Callable[[], None]) -> None:
        """Start accepting connections; see `Listener.open`. Raises ConfigurationError."""
        tls = self._config.tls
        if tls.certificate is not None:
            self._listener.use(server_context(tls.certificate, tls.key, tls.ca))
        self._listener.configure(Bounds(connections=_MAX_CONNECTIONS), None)
        self._listener.open(sock, relieve)

    def end_idle(self) -> None:
        """Close idle connections now, and the others after their request."""
        self._listener.end_idle()

    async def run(self, downloads: Downloads) -> None:
        """Keep this node in the cluster until cancelled, or closed."""
        self._running = asyncio.current_task()
        await self._node.run(self._store, downloads, beats=self._beats)

    async def drain(self) -> None:
        """Serve no new requests: other nodes turn elsewhere. Those in progress continue."""
        self._is_stopping = True
        await self._node.drain(beats=self._beats)

    async def close(self) -> None:
        """Close all connections, and hand the leases over; after the downloads have stopped."""
        self._listener.close()
        await self._listener.shutdown(1.0)
        if self._running is not None:
            # Its next beat would add this node to the members again, and a call would open a new connection to Redis.
            self._running.cancel()
            await asyncio.wait([self._running], timeout=_STOP_TIMEOUT_S)
        await self._node.close(self._store.files, beats=self._beats)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        api = self._api
        with self._graph.in_use.hold():
            return await api.handle(request, stopping=self._is_stopping)


def _limits(stall_s: float) -> Limits:
    """Half of the time for the silence of a body, and half for the answer to the question whether more is expected."""
    connect = min(_MAX_CONNECT_S, stall_s / 4)
    return Limits(connect=connect, headers=stall_s / 2 - connect, stall=stall_s / 2)


def _client_tls(tls: ClusterTls) -> ssl.SSLContext | None:
    if tls.certificate is None or tls.key is None or tls.ca is None:
        return None
    return client_context(tls.certificate, tls.key, tls.ca)
