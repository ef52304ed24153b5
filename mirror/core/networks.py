"""Addresses and networks: which clients are admitted, which addresses count as one client, and which are internal."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from mirror.core.errors import InvalidInput

Network: TypeAlias = IPv4Network | IPv6Network

Address: TypeAlias = IPv4Address | IPv6Address

_MAPPED = IPv6Network("::ffff:0:0/96")

# Prefixes whose last 32 bits are an IPv4 address: IPv4-mapped and IPv4-compatible (RFC 4291 section 2.5.5), IPv4-translated
# (RFC 2765), and NAT64's well-known prefix (RFC 6052 section 2.1).
_EMBEDDING = (_MAPPED, IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"), IPv6Network("64:ff9b::/96"))
# NAT64's prefix for use inside of networks (RFC 8215), which each of them cuts as it likes.
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
# By the length of the prefix, how far to the right of it the IPv4 address continues behind bits 64 to 71 (RFC 6052 section 2.2).
_NAT64_LENGTHS = (48, 56, 64)
# What stands in these by chance is no embedded address: "this network" and what is reserved (RFC 1122, RFC 1112).
_NO_EMBEDDED = (IPv4Network("0.0.0.0/8"), IPv4Network("240.0.0.0/4"))

# What the standard library takes for global, or may take in one of its releases, and no public upstream lives in:
# protocol assignments, where one cloud has its metadata (RFC 6890, 192.0.0.192), another cloud's platform, site-local (RFC 3879).
_INTERNAL: tuple[Network, ...] = (
    IPv4Network("168.63.129.16/32"),
    IPv4Network("192.0.0.0/24"),
    IPv6Network("fec0::/10"),
)

# One customer has at least a /64, and may take any address in it (RFC 6177).
_CLIENT_BITS = 64


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


def parse_address(text: str) -> Address | None:
    """Read a peer's address, without its zone; IPv4 in the form of IPv6 becomes IPv4. None if it is no address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_within(address: Address | None, networks: Iterable[Network]) -> bool:
    """Whether an address lies in one of the networks."""
    return address is not None and any(address in network for network in networks)


def client_key(address: str) -> str:
    """The key under which a client is counted: an IPv4 address is one client, whatever its form, and so is a /64 of IPv6.

    Args:
        address: a peer's, as a socket names it. What is no address (a Unix socket has none) is its own key.
    """
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, _CLIENT_BITS), strict=False))
    return address if parsed is None else str(parsed)


def is_internal(address: Address) -> bool:
    """Whether an address is one of this host, a private network, a link or a cloud's platform, in whatever form it is written.

    An IPv6 address that stands for an IPv4 one (IPv4-mapped, NAT64, 6to4) is judged by that. Multicast is internal, too.
    """
    if isinstance(address, IPv6Address) and (embedded := _embedded(address)):
        return any(map(is_internal, embedded))
    return not address.is_global or address.is_multicast or is_within(address, _INTERNAL)


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address may stand for; none if it is only itself."""
    if address.sixtofour is not None:
        return [address.sixtofour]
    number = int(address)
    last = IPv4Address(number & 0xFFFFFFFF)
    if address in _LOCAL_NAT64:
        possible = [last, *(_behind(number, length) for length in _NAT64_LENGTHS)]
        return [found for found in possible if not is_within(found, _NO_EMBEDDED)] or [last]
    return [last] if is_within(address, _EMBEDDING) else []


def _behind(number: int, length: int) -> IPv4Address:
    """The IPv4 address behind a NAT64 prefix of a length below 96: it leaves out bits 64 to 71."""
    before = 64 - length
    high = number >> 64 & (1 << before) - 1
    low = number >> 24 + before & (1 << 32 - before) - 1
    return IPv4Address(high << 32 - before | low)
