"""Which addresses are internal, and which are one client."""

import pytest

from mirror.core.networks import client_key, is_internal, parse_address

INTERNAL = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.0.9",
    "168.63.129.16",
    "0.0.0.0",
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
    "::1",
    "::",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::127.0.0.1",
    "64:ff9b:1:7f00:0:100::",
    "64:ff9b:1:7f00:0:100:808:808",
    "64:ff9b:1:007f:0:1::",
    "64:ff9b:1:0:7f:0:100:0",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:101::1",
    "2001:db8::1",
    "2001:0:7f00:1::1",
]

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::8.8.8.8",
    "64:ff9b:1:808:8:800::",
    "2002:808:808::1",
]


@pytest.mark.parametrize("text", INTERNAL)
def test_internal(text):
    """Addresses of this host, of networks and links, of metadata services, and all that stand for one of these."""
    assert is_internal(parse_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text):
    """Addresses on the Internet, also behind a translator."""
    assert not is_internal(parse_address(text))


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_client_key(address, key):
    """An IPv4 address is one client in either form, a /64 of IPv6 is one."""
    assert client_key(address) == key
