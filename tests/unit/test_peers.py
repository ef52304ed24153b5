"""What one client may have under way, whatever address of its own it takes."""

import pytest

from mirror.core.counts import CountTable
from mirror.core.networks import parse_network
from mirror.web.peers import NETWORK, TOO_MANY_CONNECTIONS, Bounds, Peers


@pytest.fixture
def peers():
    made = Peers(lambda refusal, address: None, CountTable.private(), "access")
    made.configure(Bounds(connections_per_address=2))
    return made


def test_a_network_of_ipv6_is_one_client(peers):
    """Who has a /64 has no more connections by taking another address of it for each."""
    first, second = (peers.connected(f"2001:db8:1:2::{number}") for number in (1, 2))
    assert (first.refusal, second.refusal) == (None, None)
    assert first.peer is second.peer
    third = peers.connected("2001:db8:1:2:ffff::3")
    assert third.refusal is TOO_MANY_CONNECTIONS
    assert peers.connected("2001:db8:1:3::1").refusal is None
    peers.left(first)
    assert peers.connected("2001:db8:1:2::4").refusal is None


def test_both_forms_of_an_address_are_one_client(peers):
    """An IPv4 client at an IPv6 socket is the same client."""
    assert peers.connected("192.0.2.1").peer is peers.connected("::ffff:192.0.2.1").peer
    assert peers.connected("192.0.2.1").refusal is TOO_MANY_CONNECTIONS


def test_networks_are_about_addresses(peers):
    """One address of a /64 may be served and another one refused, also after a change."""
    peers.configure(Bounds(networks=(parse_network("2001:db8::5"),)))
    served, refused = peers.connected("2001:db8::5"), peers.connected("2001:db8::6")
    assert (served.refusal, refused.refusal) == (None, NETWORK)
    peers.configure(Bounds(networks=(parse_network("2001:db8::6"),)))
    assert (served.source.refusal, refused.source.refusal) == (NETWORK, None)


def test_nothing_stays(peers):
    """When all connections have ended, nothing is kept of them."""
    admissions = [peers.connected(f"2001:db8::{number % 3}") for number in range(6)]
    for admission in admissions:
        peers.left(admission)
    assert (peers._peers, peers._sources, peers._connections.total, peers._turned_away) == ({}, {}, 0, 0)
    assert not peers._counts._clients
