"""From which addresses clients may come."""

import pytest

from mirror.core.networks import InvalidNetwork, is_within, parse_address, parse_network


@pytest.mark.parametrize(
    ("network", "address", "expected"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:11.1.2.3", False),
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.4", False),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "10.1.2.3", False),
        ("::/0", "2001:db8::1", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("fd00::/8", "fd12::1", True),
        ("10.0.0.0/8", "", False),
        ("0.0.0.0/0", "unix", False),
    ],
)
def test_within(network, address, expected):
    """IPv4 in the form of IPv6 is IPv4, zones do not matter, and what is no address is nowhere."""
    assert is_within(parse_address(address), [parse_network("192.0.2.1"), parse_network(network)]) is expected


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0/8", "example.org", "10.0.0.0/-1"])
def test_no_network(text):
    """What is not a network is said to be none, a network with bits behind it among them."""
    with pytest.raises(InvalidNetwork):
        parse_network(text)
