"""Limits of connections and requests, for each client address and in total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.counts import ClientCounts, CountTable, Total
from mirror.core.networks import Network, client_key, is_within, parse_address
from mirror.listener import oci_errors
from mirror.listener.oci_errors import Problem

# The addresses are counted separately, so that clients cannot lock out operators or other nodes.
_TOTALS = {"access": Total.CONNECTIONS, "admin": Total.ADMIN_CONNECTIONS, "cluster": Total.NODE_CONNECTIONS}
# Refused connections that are open to be answered, of one address and in total; further ones are closed without an answer.
_MAX_ANSWERED, _MAX_ANSWERED_TOTAL = 16, 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """Accepted networks and limits; 0 is no limit.

    Attributes:
        networks: empty for all.
        connections: of all addresses together.
    """

    networks: tuple[Network, ...] = ()
    connections: int = 0
    connections_per_address: int = 0
    requests_per_address: int = 0


class Peer:
    """A client with connections: an IPv4 address, or an IPv6 /64, whose owner can use any address in it.

    Attributes:
        key: the address, or the network.
        connections: in this process, refused ones included.
        counts: of all processes.
        checks: password checks in progress.
        turned_away: refused connections.
    """

    __slots__ = ("checks", "connections", "counts", "key", "turned_away")

    def __init__(self, key: str, counts: ClientCounts) -> None:
        self.key = key
        self.counts = counts
        self.connections = self.turned_away = self.checks = 0


class Source:
    """An address with connections.

    Attributes:
        peer: the client that owns it.
        connections: refused ones included.
        refusal: the reason why this address is refused, or None.
    """

    __slots__ = ("address", "connections", "peer", "refusal")

    def __init__(self, address: str, peer: Peer, refusal: Refusal | None) -> None:
        self.address, self.peer, self.refusal = address, peer, refusal
        self.connections = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for a refusal.

    Attributes:
        reason: one bounded word for logs and metrics.
    """

    reason: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision about a connection, made when it is accepted.

    Attributes:
        refusal: the reason why its first request is refused, with which the connection ends.
        cut: close it without an answer, because too many refused connections are open.
    """

    source: Source
    peer: Peer
    refusal: Refusal | None = None
    cut: bool = False


NETWORK = Refusal("network", oci_errors.outside())
TOO_MANY_CONNECTIONS = Refusal("connections", oci_errors.too_many("connections from one address"))
FULL = Refusal("connections", oci_errors.overloaded("the mirror has all the connections that it takes"))


class ConnectionLimiter:
    """Admits connections within the limits. Headers that proxies add do not count."""

    def __init__(self, refused: Callable[[Refusal, str], None], counts: CountTable, name: str) -> None:
        self.bounds = Bounds()
        self._refused = refused
        self._peers: dict[str, Peer] = {}
        self._sources: dict[str, Source] = {}
        self._counts = counts
        self._connections = counts.count(_TOTALS[name])
        self._name = name
        self._turned_away = 0

    def configure(self, bounds: Bounds) -> None:
        """Change the bounds. They apply to the next request of open connections, too."""
        self.bounds = bounds
        for source in self._sources.values():
            source.refusal = self._outside(source.address)

    def connected(self, address: str) -> Admission:
        """Decide about an accepted connection; call `left` when it ends."""
        source = self._sources.get(address) or self._new(address)
        source.connections += 1
        peer = source.peer
        peer.connections += 1
        refusal = source.refusal or self._enter(peer)
        if refusal is None:
            return Admission(source, peer)
        cut = peer.turned_away >= _MAX_ANSWERED or self._turned_away >= _MAX_ANSWERED_TOTAL
        peer.turned_away += 1
        self._turned_away += 1
        self._refused(refusal, address)
        return Admission(source, peer, refusal, cut)

    def left(self, admission: Admission) -> None:
        """Record the end of a connection."""
        source, peer = admission.source, admission.peer
        peer.connections -= 1
        if admission.refusal is None:
            peer.counts.connections.leave()
            self._connections.leave()
        else:
            peer.turned_away -= 1
            self._turned_away -= 1
        source.connections -= 1
        if not source.connections:
            self._sources.pop(source.address, None)
        self.forget(peer)

    def forget(self, peer: Peer) -> None:
        """Drop a client without connections and requests."""
        if not peer.connections and not peer.counts.requests.own and self._peers.get(peer.key) is peer:
            del self._peers[peer.key]
            self._counts.release(peer.counts)

    def _new(self, address: str) -> Source:
        key = client_key(address)
        peer = self._peers.get(key) or self._peers.setdefault(key, Peer(key, self._counts.acquire(key, self._name)))
        source = self._sources[address] = Source(address, peer, self._outside(address))
        return source

    def _outside(self, address: str) -> Refusal | None:
        networks = self.bounds.networks
        return NETWORK if networks and not is_within(parse_address(address), networks) else None

    def _enter(self, peer: Peer) -> Refusal | None:
        """Count a connection, or return the limit that it exceeds."""
        if not self._connections.enter(self.bounds.connections):
            return FULL
        if not peer.counts.connections.enter(self.bounds.connections_per_address):
            self._connections.leave()
            return TOO_MANY_CONNECTIONS
        return None
