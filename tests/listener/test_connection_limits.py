"""What one client may have under way, whatever address of its own it takes."""

import pytest

from mirror.core.counts import CountTable
from mirror.core.networks import parse_network
from mirror.listener.connections import NETWORK, TOO_MANY_CONNECTIONS, Bounds, ConnectionLimiter


@pytest.fixture
def limiter():
    made = ConnectionLimiter(lambda refusal, address: None, CountTable.private(), "access")
    made.configure(Bounds(connections_per_address=2))
    return made


def test_a_network_of_ipv6_is_one_client(limiter):
    """Who has a /64 has no more connections by taking another address of it for each."""
    first, second = (limiter.connected(f"2001:db8:1:2::{number}") for number in (1, 2))
    assert (first.refusal, second.refusal) == (None, None)
    assert first.peer is second.peer
    third = limiter.connected("2001:db8:1:2:ffff::3")
    assert third.refusal is TOO_MANY_CONNECTIONS
    assert limiter.connected("2001:db8:1:3::1").refusal is None
    limiter.left(first)
    assert limiter.connected("2001:db8:1:2::4").refusal is None


def test_both_forms_of_an_address_are_one_client(limiter):
    """An IPv4 client at an IPv6 socket is the same client."""
    assert limiter.connected("192.0.2.1").peer is limiter.connected("::ffff:192.0.2.1").peer
    assert limiter.connected("192.0.2.1").refusal is TOO_MANY_CONNECTIONS


def test_networks_are_about_addresses(limiter):
    """One address of a /64 may be served and another one refused, also after a change."""
    limiter.configure(Bounds(networks=(parse_network("2001:db8::5"),)))
    served, refused = limiter.connected("2001:db8::5"), limiter.connected("2001:db8::6")
    assert (served.refusal, refused.refusal) == (None, NETWORK)
    limiter.configure(Bounds(networks=(parse_network("2001:db8::6"),)))
    assert (served.source.refusal, refused.source.refusal) == (NETWORK, None)


def test_nothing_stays(limiter):
    """When all connections have ended, nothing is kept of them."""
    admissions = [limiter.connected(f"2001:db8::{number % 3}") for number in range(6)]
    for admission in admissions:
        limiter.left(admission)
    assert (limiter._peers, limiter._sources, limiter._connections.total, limiter._turned_away) == ({}, {}, 0, 0)
    assert not limiter._counts._clients
