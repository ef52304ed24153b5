"""A hostile upstream: nothing leaves that should not, memory stays flat, and the client gets its answer in bounded time."""

import asyncio
import contextlib
import socket
import time

import aiohttp
import pytest

from tests.fakehub import (
    Chunked,
    Corrupt,
    Cut,
    ForeignRealm,
    Headers,
    Html,
    HugeBody,
    HugeHeaders,
    Redirect,
    RedirectLoop,
    Rule,
    Status,
    WrongLength,
)
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, MIB
from tests.support.ports import free_port
from tests.support.waiting import SOON

PASSWORD = "hunter2-never-to-be-seen"
PUBLIC = "93.184.216.34"


class Resolver:
    """Names as an attacker's name server has them: everything is where the visitors are counted, or in the cloud.

    Addresses are by name, or by name and port.
    """

    def __init__(self, addresses):
        self.addresses = addresses
        self.asked = []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        found = self.addresses.get((host, port)) or self.addresses[host]
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for address in found
        ]

    async def close(self):
        pass


@contextlib.asynccontextmanager
async def visitors():
    """A server on loopback that counts who comes."""
    seen = []

    async def visit(reader, writer):
        seen.append((await reader.read(4096)).decode("latin-1"))
        writer.close()

    server = await asyncio.start_server(visit, "127.0.0.4", 0)
    async with server:
        yield seen, server.sockets[0].getsockname()[1]


@pytest.fixture
async def known(hub, tmp_path):
    """A mirror with credentials, of an upstream that wants them."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    hub.users = {"robot": PASSWORD}
    entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "username": "robot", "password_file": str(password)}
    settings = {"registries": {"docker.io": entry}, "downloads": {"stall_timeout": "1s"}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        yield mirror


def resident():
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def bounded(mirror, path, limit=SOON):
    started = time.monotonic()
    answer = await mirror.get(path)
    assert time.monotonic() - started < limit
    return answer


HOSTILE = [
    pytest.param(RedirectLoop(), id="endless redirects"),
    pytest.param(HugeHeaders(1 << 20), id="huge header"),
    pytest.param(Headers({f"X-{number}": "x" * 4000 for number in range(500)}), id="many headers"),
    pytest.param(HugeBody(10 << 30), id="10 GB"),
    pytest.param(WrongLength(+10), id="length too large"),
    pytest.param(WrongLength(-10), id="length too small"),
    pytest.param(Corrupt(3), id="wrong digest"),
    pytest.param(Html(), id="page"),
    pytest.param(Chunked(endless=True), id="chunked without end"),
    pytest.param(Redirect("http://169.254.169.254:1/latest/meta-data"), id="metadata"),
    pytest.param(Status(200, {"Content-Length": "-1"}), id="negative length"),
    pytest.param(Cut(1), id="cut"),
]


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_every_hostile_answer(hub, known, fault, kind):
    """Whatever comes: an error in bounded time, nothing kept, no memory taken, and no credential but to the token host."""
    if (kind, type(fault)) == ("blob", HugeBody):
        # A blob may well have 10 GB; then it is the disk's size that counts.
        fault = HugeBody(10 * MIB)
    image = hub.add_image(APP, "1", layers=[b"x" * 70_000])
    hub.private(APP, ["robot"])
    hub.redirect_blobs = False
    path = f"/v2/{APP}/manifests/{image.digest}" if kind == "manifest" else f"/v2/{APP}/blobs/{image.layers[0].digest}"
    hub.script(Rule(kind=kind, times=None), fault)
    before = resident()
    try:
        answer = await bounded(known, path)
    except aiohttp.ClientPayloadError:
        # The body of a blob that has begun ends short; a manifest's is sent whole or not at all.
        if kind == "manifest":
            raise
    else:
        assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
        assert PASSWORD not in str(answer.body) + str(answer.headers)
    await known.idle()
    assert resident() - before < 64 * MIB
    assert not known.holds(image.digest if kind == "manifest" else image.layers[0].digest)
    assert not [seen for seen in hub.requests if seen.host != "token" and "Basic" in str(seen.authorization)]


async def test_headers_without_end(hub, tmp_path):
    """Headers that never end are left as soon as they are too many."""
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(ConnectionError):
            while sent < 256 * MIB:
                writer.write(b"X-Header: value\r\n" * 1000)
                sent += 17_000
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        entry = {"upstreams": [f"http://127.0.0.1:{port}"]}
        async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
            assert (await bounded(mirror, f"/v2/{APP}/manifests/1")).status == 503
    assert sent < 64 * MIB


# ---- where a public upstream leads


@pytest.fixture
def public(monkeypatch):
    """The fake Hub counts as one on the Internet, by the address that was connected to."""
    monkeypatch.setattr("mirror.upstream.http.peer", lambda response: PUBLIC)


INTERNAL = [
    ["127.0.0.4"],
    ["169.254.169.254"],
    ["10.0.0.1"],
    ["192.168.1.1", "172.16.0.1"],
    ["100.100.100.200"],
    ["fd00::1"],
]


@pytest.mark.parametrize("addresses", INTERNAL, ids=lambda addresses: addresses[0])
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_name_that_leads_inside(hub, tmp_path, monkeypatch, public, kind, addresses):
    """A redirect to a harmless name that turns out to be inside is refused before a connection, on manifests and blobs."""
    resolver = Resolver({"cdn.example": addresses})
    monkeypatch.setattr("mirror.upstream.http.aiohttp.DefaultResolver", lambda: resolver)
    async with visitors() as (seen, port), MirrorUnderTest(hub, tmp_path / "store") as mirror:
        image = hub.add_image(APP, "1")
        path = f"/v2/{APP}/manifests/1" if kind == "manifest" else f"/v2/{APP}/blobs/{image.layers[0].digest}"
        hub.script(Rule(kind=kind, host="registry", times=None), Redirect(f"http://cdn.example:{port}/x"))
        answer = await bounded(mirror, path)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    assert "internal address" in answer.body.decode()
    assert resolver.asked
    assert seen == []


async def test_only_public_addresses_of_a_mixed_name(monkeypatch):
    """Of a name with addresses of both kinds only those on the Internet are connected to."""
    from mirror.upstream.redirects import PublicResolver

    guarded = PublicResolver(Resolver({"mixed.example": ["127.0.0.1", PUBLIC, "10.1.1.1"]}))
    assert [found["host"] for found in await guarded.resolve("mixed.example", 443)] == [PUBLIC]


async def test_address_that_leads_inside(hub, mirror, public):
    """A redirect of a public upstream to an internal address by itself is refused, too."""
    hub.add_image(APP, "1")
    async with visitors() as (seen, port):
        hub.script(Rule(kind="manifest", times=None), Redirect(f"http://127.0.0.4:{port}/x"))
        assert (await bounded(mirror, f"/v2/{APP}/manifests/1")).status == 503
    assert seen == []


async def test_private_upstream_may_lead_to_names_inside(hub, tmp_path, monkeypatch):
    """An upstream in the own network leads to names in it, as to a store of objects beside it."""
    monkeypatch.setattr("mirror.upstream.http.aiohttp.DefaultResolver", lambda: Resolver({"minio.internal": ["127.0.0.4"]}))
    async with visitors() as (seen, port), MirrorUnderTest(hub, tmp_path / "store") as mirror:
        image = hub.add_image(APP, "1")
        hub.script(Rule(kind="blob", host="registry", times=None), Redirect(f"http://minio.internal:{port}/x"))
        await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
    assert seen
    assert "Authorization" not in "".join(seen)


@pytest.mark.parametrize("way", ["redirect", "realm"])
async def test_private_upstream_by_name_may_lead_to_names_inside(hub, tmp_path, monkeypatch, way):
    """That a named upstream is inside is learned from its first answer, however short, and before that is followed."""
    names = {"registry.example.com": ["127.0.0.1"], "minio.internal": ["127.0.0.4"]}
    monkeypatch.setattr("mirror.upstream.http.aiohttp.DefaultResolver", lambda: Resolver(names))
    url = f"http://registry.example.com:{hub.url.rpartition(':')[2]}"
    entry = {"upstreams": [url], "token_hosts": [hub.token_host]}
    image = hub.add_image(APP, "1")
    async with (
        visitors() as (seen, port),
        MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror,
    ):
        if way == "redirect":
            hub.script(Rule(kind="blob", host="registry", times=None), Redirect(f"http://minio.internal:{port}/x"))
            await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
        else:
            names["registry.example.com", port] = ["127.0.0.4"]
            realm = f"http://registry.example.com:{port}/token"
            hub.script(Rule(kind="manifest", times=None, challenge=True), ForeignRealm(realm))
            await mirror.get(f"/v2/{APP}/manifests/1")
    assert seen


async def test_realm_that_leads_inside(hub, tmp_path, monkeypatch, public):
    """A realm on the upstream's own host is not followed into the network, and gets no credentials there."""
    names = {"hub.example.com": ["127.0.0.1"]}
    monkeypatch.setattr("mirror.upstream.http.aiohttp.DefaultResolver", lambda: Resolver(names))
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    url = f"http://hub.example.com:{hub.url.rpartition(':')[2]}"
    entry = {"upstreams": [url], "token_hosts": [], "username": "robot", "password_file": str(password)}
    hub.add_image(APP, "1")
    async with (
        visitors() as (seen, port),
        MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror,
    ):
        names["hub.example.com", port] = ["127.0.0.4"]
        hub.script(Rule(kind="manifest", times=None, challenge=True), ForeignRealm(f"http://hub.example.com:{port}/token"))
        assert (await bounded(mirror, f"/v2/{APP}/manifests/1")).status == 503
    assert seen == []


# ---- circles


async def test_mirrors_in_a_circle(hub, tmp_path):
    """Two mirrors that have each other as upstream notice it at once, and one further upstream serves both."""
    image = hub.add_image(APP, "1")
    ports = [free_port(), free_port()]
    entries = [
        {"upstreams": [f"http://127.0.0.1:{ports[1]}", hub.url], "token_hosts": [hub.token_host]},
        {"upstreams": [f"http://127.0.0.1:{ports[0]}"]},
    ]
    async with contextlib.AsyncExitStack() as stack:
        mirrors = [
            await stack.enter_async_context(
                MirrorUnderTest(hub, tmp_path / str(port), listen=f"127.0.0.1:{port}", registries={"docker.io": entry})
            )
            for port, entry in zip(ports, entries, strict=True)
        ]
        assert (await bounded(mirrors[0], f"/v2/{APP}/manifests/1")).body == image.raw
        blob = image.layers[0]
        assert (await bounded(mirrors[0], f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data


async def test_mirror_of_itself(tmp_path, hub):
    """A mirror whose upstream is itself says so, fast."""
    port = free_port()
    entry = {"upstreams": [f"http://127.0.0.1:{port}"]}
    settings = {"listen": f"127.0.0.1:{port}", "registries": {"docker.io": entry}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        for path in (f"/v2/{APP}/manifests/1", f"/v2/{APP}/tags/list", f"/v2/{APP}/blobs/sha256:{'0' * 64}"):
            assert (await bounded(mirror, path)).status == 503


@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_redirected_requests_tell_their_way(hub, mirror, kind):
    """A circle that leads through a redirect is one, too: where upstream redirects to hears of the mirrors on the way."""
    image = hub.add_image(APP, "1")
    async with visitors() as (seen, port):
        path = f"/v2/{APP}/manifests/1" if kind == "manifest" else f"/v2/{APP}/blobs/{image.layers[0].digest}"
        hub.script(Rule(kind=kind, host="registry", times=None), Redirect(f"http://127.0.0.4:{port}/x"))
        await bounded(mirror, path)
    assert seen
    assert all("\r\nVia: 1.1 registry-mirror-" in text for text in seen)
    assert not any("Authorization" in text or "X-Request-Id" in text for text in seen)


async def test_circle_through_a_redirect(hub, mirror):
    """An upstream that redirects to this mirror itself is answered at once."""
    image = hub.add_image(APP, "1")
    path = f"/v2/{APP}/blobs/{image.layers[0].digest}"
    hub.script(Rule(kind="blob", host="registry", times=None), Redirect(mirror.url(path)))
    assert (await bounded(mirror, path)).status == 503


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/json", "application/octet-stream"])
async def test_upstreams_type_of_a_manifest(hub, mirror, method, kind):
    """Only a manifest's own types reach clients, one of which may be a browser."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None), Headers({"Content-Type": kind}))
    for reference in ("1", image.digest):
        answer = await mirror.get(f"/v2/{APP}/manifests/{reference}", method)
        assert (answer.status, answer.headers["Content-Type"]) == (200, image.media_type)


async def test_chain_of_mirrors(hub, tmp_path):
    """A mirror of a mirror is no circle."""
    image = hub.add_image(APP, "1")
    async with MirrorUnderTest(hub, tmp_path / "near") as near:
        entry = {"upstreams": [near.url("")]}
        async with MirrorUnderTest(hub, tmp_path / "far", registries={"docker.io": entry}) as far:
            assert (await far.get(f"/v2/{APP}/manifests/1")).body == image.raw


async def test_long_way_round(mirror):
    """A request that has come through very many mirrors can only go in a circle; other proxies do not count."""
    hops = ", ".join(f"1.1 registry-mirror-{number:x}" for number in range(8))
    answer = await mirror.get("/v2/", headers={"Via": hops})
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    assert (await mirror.get("/v2/", headers={"Via": ", ".join(["1.1 varnish"] * 20)})).status == 200
