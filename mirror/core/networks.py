"""From which addresses clients may come."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from mirror.core.errors import InvalidInput

Network: TypeAlias = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")


class InvalidNetwork(InvalidInput):
    """Not an address, or a network in CIDR form (RFC 4632)."""

    what = "network"


def parse_network(text: str) -> Network:
    """Read `10.0.0.0/8` or an address; IPv4 in the form of IPv6 becomes IPv4. Raises InvalidNetwork."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise InvalidNetwork(text, "expected an address, or a network like 10.0.0.0/8 with no bit set behind it") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None
        return IPv4Network((mapped, network.prefixlen - 96))
    return network


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Read a peer's address, without its zone; IPv4 in the form of IPv6 becomes IPv4. None if it is no address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_within(address: IPv4Address | IPv6Address | None, networks: Iterable[Network]) -> bool:
    """Whether an address lies in one of the networks."""
    return address is not None and any(address in network for network in networks)
