"""By which names a loopback address may be called, and what a certificate says its server is called."""

import pytest

from mirror.config.tls import certificate_names
from mirror.core.certificate import dns_names
from mirror.core.errors import InvalidInput
from mirror.core.hosts import HostNames, parse_host
from tests.support.certificates import Authority

OWN = [
    None,
    "",
    "127.0.0.1",
    "127.0.0.1:5000",
    "[::1]:5001",
    "[::1]",
    "192.0.2.7:5000",
    "localhost",
    "LocalHost:5000",
    "localhost.",
    "mirror.localhost:5000",
    "host.docker.internal:5000",
    "mirror",
    "my_mirror:5000",
    "mirror.example.com",
    "MIRROR.example.com:443",
    "mirror.example.com.",
    "a.wild.example",
]

FOREIGN = [
    "evil.example",
    "evil.example:5000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example.localhost.example",
    "mirror.example.com.evil.example",
    "a.b.wild.example",
    "wild.example",
    "evil.example/",
    "user@127.0.0.1",
    "127.0.0.1:5000:5001",
    "[evil]",
    "a b",
    "mirror.example.com, evil.example",
    "*.wild.example",
]


@pytest.mark.parametrize("header", OWN)
def test_own(header):
    """Addresses, names that nobody else can have, and those that are configured."""
    assert HostNames(["mirror.example.com", "*.wild.example"]).include(header)


@pytest.mark.parametrize("header", FOREIGN)
def test_foreign(header):
    """Any name that somebody else may own, and what is no host at all."""
    assert not HostNames(["mirror.example.com", "*.wild.example"]).include(header)


@pytest.mark.parametrize("text", ["", "http://mirror", "mirror:5000", "a..b", "-a.example", "a" * 64, "*.example", "ä.example"])
def test_bad_names(text):
    """Names with a scheme or a port are mistakes of the configuration."""
    with pytest.raises(InvalidInput):
        parse_host(text)


def test_names_of_a_certificate(tmp_path):
    """The host names of the extension, not the addresses."""
    certificate, _ = Authority(tmp_path).issue("server")
    assert certificate_names(certificate) == {"localhost"}


def test_certificate_without_names(tmp_path):
    """An authority's own certificate says no name."""
    assert certificate_names(Authority(tmp_path).certificate) == frozenset()


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_damaged_extension(cut):
    """What cannot be read has no names, wherever it ends."""
    extension = bytes.fromhex("0603551d11") + bytes.fromhex("0101ff") + b"\x04\x10\x30\x0e\x82\x0cmirror.local"
    names = dns_names(b"\x30\x82" + extension[: len(extension) - cut])
    assert names == (frozenset({"mirror.local"}) if cut == 0 else frozenset())
