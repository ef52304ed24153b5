"""Client addresses and what each has under way, so that none can have everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from mirror.core.networks import Network, is_within, parse_address
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
    """One client address with connections.

    Attributes:
        requests: under way.
        checks: of passwords, under way.
        refusal: why nothing is served to this address.
    """

    __slots__ = ("address", "checks", "connections", "refusal", "requests", "turned_away")

    def __init__(self, address: IPv4Address | IPv6Address | None) -> None:
        self.address = address
        self.connections = self.turned_away = self.requests = self.checks = 0
        self.refusal: Refusal | None = None


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

    peer: Peer
    refusal: Refusal | None = None
    cut: bool = False


NETWORK = Refusal("network", problems.outside())
TOO_MANY_CONNECTIONS = Refusal("connections", problems.too_many("connections from one address"))
FULL = Refusal("connections", problems.overloaded("the mirror has all the connections that it takes"))


class Peers:
    """All client addresses that have connections. Whatever a proxy says about others behind it does not count."""

    def __init__(self, refused: Callable[[Refusal, Peer], None]) -> None:
        self.bounds = Bounds()
        self._refused = refused
        self._peers: dict[str, Peer] = {}
        self._connections = self._turned_away = 0

    def configure(self, bounds: Bounds) -> None:
        """Change the bounds; those who are connected and may not be any more are refused from now on."""
        self.bounds = bounds
        for peer in self._peers.values():
            peer.refusal = self._outside(peer)

    def connected(self, address: str) -> Admission:
        """Decide about a connection that was made; `left` has to be told of its end."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(parse_address(address))
            peer.refusal = self._outside(peer)
        refusal = peer.refusal or self._too_many(peer)
        if refusal is None:
            peer.connections += 1
            self._connections += 1
            return Admission(peer)
        cut = peer.turned_away >= _POLITE or self._turned_away >= _POLITE_IN_ALL
        peer.turned_away += 1
        self._turned_away += 1
        self._refused(refusal, peer)
        return Admission(peer, refusal, cut)

    def left(self, address: str, admission: Admission) -> None:
        """A connection has ended."""
        peer = admission.peer
        if admission.refusal is None:
            peer.connections -= 1
            self._connections -= 1
        else:
            peer.turned_away -= 1
            self._turned_away -= 1
        if not peer.connections and not peer.turned_away:
            self._peers.pop(address, None)

    def _outside(self, peer: Peer) -> Refusal | None:
        networks = self.bounds.networks
        return NETWORK if networks and not is_within(peer.address, networks) else None

    def _too_many(self, peer: Peer) -> Refusal | None:
        bounds = self.bounds
        if 0 < bounds.connections <= self._connections:
            return FULL
        if 0 < bounds.connections_per_address <= peer.connections:
            return TOO_MANY_CONNECTIONS
        return None
