"""Where a redirect may lead, and for how long its target is used again."""

from types import SimpleNamespace

import pytest
from yarl import URL

from mirror.errors import UpstreamProtocolError
from mirror.upstream.attempt import UpstreamRequest
from mirror.upstream.redirects import RedirectTargets, is_inside, target

PUBLIC = URL("https://registry-1.docker.io")
INSIDE = URL("http://10.0.0.5:5000")
CDN = URL("https://cdn.example/blob?signature=x")


@pytest.mark.parametrize(
    "location",
    [
        "https://production.cloudflare.docker.com/registry-v2/data?verify=1-a%2Fb%3D",
        "https://s3.amazonaws.com/bucket/a%252Fb?X-Amz-Signature=x%2By&a=b+c",
        "https://[2606:4700::1]/x",
        "https://1.1.1.1/x",
    ],
)
def test_elsewhere_and_untouched(location):
    """A redirect to another host is followed with its escapes as they are: they are part of a signature."""
    assert str(target(PUBLIC, location, PUBLIC, public=True)) == location


def test_relative():
    """A relative location is one at the host that redirects, which need not be the upstream."""
    current = URL("https://cdn.example/a/b?c=d")
    assert str(target(current, "/x%2Fy?z=%3D", PUBLIC, public=True)) == "https://cdn.example/x%2Fy?z=%3D"
    assert str(target(current, "x", PUBLIC, public=True)) == "https://cdn.example/a/x"
    assert str(target(current, "//other.example/x", PUBLIC, public=True)) == "https://other.example/x"


@pytest.mark.parametrize(
    "location",
    [
        None, "", "http://cdn.example/x", "ftp://cdn.example/x", "file:///etc/passwd", "gopher://cdn.example/", "javascript:1",
        "https://", "https:///x", "https://user@cdn.example/x", "https://user:password@cdn.example/x", "https://:x@cdn.example/",
        "https://a:99999/", "https://[::1/", "data:text/plain,x",
    ],
)  # fmt: skip
def test_refused(location):
    """No location, a scheme less safe than upstream's, credentials, and what is no URL are refused, and only as nonsense."""
    with pytest.raises(UpstreamProtocolError):
        target(PUBLIC, location, PUBLIC, public=True)


HOSTS_INSIDE = [
    "169.254.169.254", "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "localhost",
    "x.localhost", "LOCALHOST", "[::1]", "[::]", "[fe80::1]", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "[::ffff:127.0.0.1]",
    "localhost.", "169.254.169.254.",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS_INSIDE)
def test_public_upstream_does_not_lead_inside(host):
    """A public upstream cannot have the mirror ask its own host, its network, or the cloud's metadata service."""
    with pytest.raises(UpstreamProtocolError):
        target(PUBLIC, f"https://{host}/latest/meta-data/", PUBLIC, public=True)


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "127.1"])
def test_addresses_in_disguise(host):
    """Old notations of an address, which resolvers still understand, are addresses."""
    with pytest.raises(UpstreamProtocolError):
        target(PUBLIC, f"https://{host}/", PUBLIC, public=True)


def test_upstream_inside_may_lead_inside():
    """An upstream in a private network may redirect within it, also by http, which it speaks itself."""
    assert str(target(INSIDE, "http://10.0.0.6:9000/x", INSIDE, public=False)) == "http://10.0.0.6:9000/x"


@pytest.mark.parametrize("host", ["registry-1.docker.io", "1.1.1.1", "2606:4700::1", "localhost.example.com", "10.example"])
def test_outside(host):
    """Names and global addresses are not inside."""
    assert not is_inside(host)


@pytest.mark.parametrize("date", ["", "nonsense", "Thu, 01 Jan 2026 00:00:00 +99999999999999", "Thu, 01 Jan 99999 00:00:00 GMT"])
def test_date_that_is_none(date):
    """A Date header that is no date costs nothing: the own clock is used."""
    targets, request = RedirectTargets(), UpstreamRequest("blob", "library/app", "blobs/sha256:abc")
    targets.keep(request, SimpleNamespace(headers={"Date": date}), CDN, 0.0)
    assert targets.get(request, 1.0) == CDN
