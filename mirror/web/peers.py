"""Clients by their addresses and what each has under way, so that none can have everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.networks import Network, client_key, is_within, parse_address
from mirror.web import problems
from mirror.web.problems import Problem

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
        requests: under way.
        checks: of passwords, under way.
    """

    __slots__ = ("checks", "connections", "key", "requests", "turned_away")

    def __init__(self, key: str) -> None:
        self.key = key
        self.connections = self.turned_away = self.requests = self.checks = 0


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


NETWORK = Refusal("network", problems.outside())
TOO_MANY_CONNECTIONS = Refusal("connections", problems.too_many("connections from one address"))
FULL = Refusal("connections", problems.overloaded("the mirror has all the connections that it takes"))


class Peers:
    """All clients that have connections. Whatever a proxy says about others behind it does not count."""

    def __init__(self, refused: Callable[[Refusal, str], None]) -> None:
        self.bounds = Bounds()
        self._refused = refused
        self._peers: dict[str, Peer] = {}
        self._sources: dict[str, Source] = {}
        self._connections = self._turned_away = 0

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
        refusal = source.refusal or self._too_many(peer)
        if refusal is None:
            peer.connections += 1
            self._connections += 1
            return Admission(source, peer)
        cut = peer.turned_away >= _POLITE or self._turned_away >= _POLITE_IN_ALL
        peer.turned_away += 1
        self._turned_away += 1
        self._refused(refusal, address)
        return Admission(source, peer, refusal, cut)

    def left(self, admission: Admission) -> None:
        """A connection has ended."""
        source, peer = admission.source, admission.peer
        if admission.refusal is None:
            peer.connections -= 1
            self._connections -= 1
        else:
            peer.turned_away -= 1
            self._turned_away -= 1
        source.connections -= 1
        if not source.connections:
            self._sources.pop(source.address, None)
        if not peer.connections and not peer.turned_away:
            self._peers.pop(peer.key, None)

    def _new(self, address: str) -> Source:
        key = client_key(address)
        peer = self._peers.get(key) or self._peers.setdefault(key, Peer(key))
        source = self._sources[address] = Source(address, peer, self._outside(address))
        return source

    def _outside(self, address: str) -> Refusal | None:
        networks = self.bounds.networks
        return NETWORK if networks and not is_within(parse_address(address), networks) else None

    def _too_many(self, peer: Peer) -> Refusal | None:
        bounds = self.bounds
        if 0 < bounds.connections <= self._connections:
            return FULL
        if 0 < bounds.connections_per_address <= peer.connections:
            return TOO_MANY_CONNECTIONS
        return None
