"""Clients by their addresses and what each has under way, so that none can have everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.counts import ClientCounts, CountTable, Total
from mirror.core.networks import Network, client_key, is_within, parse_address
from mirror.listener import oci_errors
from mirror.listener.oci_errors import Problem

# Each address of the mirror's counts for itself, lest operators and clients keep each other out.
_TOTALS = {"access": Total.CONNECTIONS, "admin": Total.ADMIN_CONNECTIONS}
# Connections that are turned away with an answer, of one address and of all; further ones are cut without a word.
_POLITE, _POLITE_IN_ALL = 16, 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """From where clients may come, and how much they may have under way; 0 is no limit.

    Attributes:
        networks: empty for everywhere.
        connections: of all addresses together.
    """

    networks: tuple[Network, ...] = ()
    connections: int = 0
    connections_per_address: int = 0
    requests_per_address: int = 0


class Peer:
    """One client with connections: an IPv4 address, or a /64 of IPv6, any address of which its owner can take.

    Attributes:
        key: the address, or the network.
        connections: in this process, those that are turned away included.
        counts: what it has under way in all processes.
        checks: of passwords, under way.
    """

    __slots__ = ("checks", "connections", "counts", "key", "turned_away")

    def __init__(self, key: str, counts: ClientCounts) -> None:
        self.key = key
        self.counts = counts
        self.connections = self.turned_away = self.checks = 0


class Source:
    """One address with connections.

    Attributes:
        peer: the client that it counts for.
        connections: those that are turned away included.
        refusal: why nothing is served to this address.
    """

    __slots__ = ("address", "connections", "peer", "refusal")

    def __init__(self, address: str, peer: Peer, refusal: Refusal | None) -> None:
        self.address, self.peer, self.refusal = address, peer, refusal
        self.connections = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client is turned away.

    Attributes:
        reason: one bounded word for logs and metrics.
    """

    reason: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Admission:
    """What was decided about a connection when it was made.

    Attributes:
        refusal: why its requests are not answered; the connection then ends with the first of them.
        cut: it is to be ended at once: too many are being told why they are refused.
    """

    source: Source
    peer: Peer
    refusal: Refusal | None = None
    cut: bool = False


NETWORK = Refusal("network", oci_errors.outside())
TOO_MANY_CONNECTIONS = Refusal("connections", oci_errors.too_many("connections from one address"))
FULL = Refusal("connections", oci_errors.overloaded("the mirror has all the connections that it takes"))


class ConnectionLimiter:
    """All clients that have connections. Whatever a proxy says about others behind it does not count."""

    def __init__(self, refused: Callable[[Refusal, str], None], counts: CountTable, name: str) -> None:
        self.bounds = Bounds()
        self._refused = refused
        self._limiter: dict[str, Peer] = {}
        self._sources: dict[str, Source] = {}
        self._counts = counts
        self._connections = counts.count(_TOTALS[name])
        self._name = name
        self._turned_away = 0

    def configure(self, bounds: Bounds) -> None:
        """Change the bounds; those who are connected and may not be any more are refused from now on."""
        self.bounds = bounds
        for source in self._sources.values():
            source.refusal = self._outside(source.address)

    def connected(self, address: str) -> Admission:
        """Decide about a connection that was made; `left` has to be told of its end."""
        source = self._sources.get(address) or self._new(address)
        source.connections += 1
        peer = source.peer
        peer.connections += 1
        refusal = source.refusal or self._enter(peer)
        if refusal is None:
            return Admission(source, peer)
        cut = peer.turned_away >= _POLITE or self._turned_away >= _POLITE_IN_ALL
        peer.turned_away += 1
        self._turned_away += 1
        self._refused(refusal, address)
        return Admission(source, peer, refusal, cut)

    def left(self, admission: Admission) -> None:
        """A connection has ended."""
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
        """Let go of a client that has nothing under way any more."""
        if not peer.connections and not peer.counts.requests.own and self._limiter.get(peer.key) is peer:
            del self._limiter[peer.key]
            self._counts.release(peer.counts)

    def _new(self, address: str) -> Source:
        key = client_key(address)
        peer = self._limiter.get(key) or self._limiter.setdefault(key, Peer(key, self._counts.acquire(f"{self._name} {key}")))
        source = self._sources[address] = Source(address, peer, self._outside(address))
        return source

    def _outside(self, address: str) -> Refusal | None:
        networks = self.bounds.networks
        return NETWORK if networks and not is_within(parse_address(address), networks) else None

    def _enter(self, peer: Peer) -> Refusal | None:
        """Count a connection, unless there are too many."""
        if not self._connections.enter(self.bounds.connections):
            return FULL
        if not peer.counts.connections.enter(self.bounds.connections_per_address):
            self._connections.leave()
            return TOO_MANY_CONNECTIONS
        return None
