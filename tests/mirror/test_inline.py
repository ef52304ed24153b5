"""Requests that are answered where they are received: with the responses of the usual way, and refused as soon as it refuses."""

import asyncio
import errno

import pytest

from mirror.registry.api import RegistryApi
from mirror.storage.blobs import BlobFiles
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, manifest_path
from tests.support.waiting import eventually
from tests.support.wire import Wire

OWN = ("date", "x-request-id")


def kept(target, *headers, method="GET", host="mirror"):
    """A request that keeps its connection open, as container clients repeat it."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def same(one, other):
    """Whether two replies differ in nothing but what each has of its own."""
    assert all(one.headers[name] for name in OWN)
    assert one.headers["x-request-id"] != other.headers["x-request-id"]
    shared = [{name: value for name, value in reply.headers.items() if name not in OWN} for reply in (one, other)]
    return (one.status, shared[0], one.body) == (other.status, shared[1], other.body)


@pytest.fixture
def image(hub):
    return hub.add_image(APP, "1")


@pytest.fixture
def handled(monkeypatch):
    """The methods and targets of the requests that took the usual way."""
    seen, handle = [], RegistryApi.handle

    async def recorded(api, one):
        seen.append((one.method, one.raw_path))
        return await handle(api, one)

    monkeypatch.setattr(RegistryApi, "handle", recorded)
    return seen


@pytest.fixture
async def wire(mirror):
    async with Wire(mirror.port) as wire:
        yield wire


async def answered(wire, data, head=False):
    await wire.send(data)
    return await wire.reply(head)


async def until_inline(wire, data, handled, head=False):
    """The last reply that took the usual way, and the first that did not."""
    last = await answered(wire, data, head)
    for _ in range(5):
        before = len(handled)
        reply = await answered(wire, data, head)
        if len(handled) == before:
            return last, reply
        last = reply
    raise AssertionError("every request took the usual way")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers", [(), ("Accept: */*",), ("If-None-Match: *",), ("Range: bytes=0-3",)], ids=["plain", "accept", "condition", "range"]
)
@pytest.mark.parametrize("what", ["tag", "digest", "blob"])
async def test_same_response(image, mirror, wire, handled, what, headers, method):
    """A repeated request gets the response of the usual way, and is counted as it is there."""
    blob = image.layers[0].digest
    target = {"tag": TAG, "digest": manifest_path(image.digest), "blob": f"/v2/{APP}/blobs/{blob}"}[what]
    await mirror.get(target)
    await mirror.idle()
    data, head = kept(target, *headers, method=method), method == "HEAD"
    usual, inline = await until_inline(wire, data, handled, head)
    assert same(usual, inline)
    kind = "blob" if what == "blob" else "manifest"
    families = ("requests_total", "served_bytes_total", "request_duration_seconds_count", "time_to_first_byte_seconds_count")
    counts = [await mirror.metric(family, outcome="HIT") for family in families]
    assert same(usual, await answered(wire, data, head))
    streamed = kind == "manifest" or (not head and usual.status != 304)
    added = [1, len(usual.body), 1, int(streamed)]
    assert [await mirror.metric(family, outcome="HIT") for family in families] == [
        count + more for count, more in zip(counts, added, strict=True)
    ]


async def test_failure(image, mirror, wire, handled, monkeypatch):
    """A request whose inline response fails takes the usual way; its connection goes on."""
    blob = image.layers[0]
    await mirror.get(TAG)
    await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()
    data = kept(f"/v2/{APP}/blobs/{blob.digest}")
    usual, _ = await until_inline(wire, data, handled)
    real, failures = BlobFiles.read_resident, [OSError(errno.EIO, "Input/output error")]

    def read(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(BlobFiles, "read_resident", read)
    before = len(handled)
    assert same(usual, await answered(wire, data))
    assert len(handled) == before + 1


async def test_purged(image, mirror, wire, handled, hub):
    """What was purged is fetched again."""
    data = kept(TAG)
    await until_inline(wire, data, handled)
    async with mirror.session.post(
        f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge", json={"match": f"docker.io/{APP}:*"}
    ) as response:
        assert response.status == 200
    assert (await answered(wire, data)).headers["x-cache"] == "MISS"


async def test_expired(image, mirror, wire, handled, clock, hub):
    """A tag is checked after its time to live, and its move is followed."""
    data = kept(TAG)
    await until_inline(wire, data, handled)
    moved = hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    assert (await answered(wire, data)).body == moved.raw


@pytest.mark.parametrize("deny", ["*/*", "tag", "digest"])
async def test_denied_by_a_reload(image, mirror, wire, handled, deny):
    """A policy counts from its reload on."""
    data = kept(manifest_path(image.digest)) if deny == "digest" else kept(TAG)
    await until_inline(wire, data, handled)
    rule = {"tag": f"{APP}:1", "digest": f"{APP}@{image.digest}"}.get(deny, deny)
    await mirror.reload(
        registries={"docker.io": {**mirror.config().registries["docker.io"].model_dump(mode="json"), "deny": [rule]}}
    )
    assert (await answered(wire, data)).status == 403


async def test_addresses_of_a_reload(image, mirror, wire, handled):
    """Networks count from their reload on."""
    data = kept(TAG)
    await until_inline(wire, data, handled)
    await mirror.reload(access={"networks": ["10.0.0.0/8"]})
    assert (await answered(wire, data)).status == 403


async def test_host_of_a_reload(image, mirror, wire, handled):
    """The names of the address count from their reload on."""
    await mirror.reload(access={"hosts": ["mirror.example.com"]})
    data = kept(TAG, host="mirror.example.com")
    await until_inline(wire, data, handled)
    await mirror.reload(access={"hosts": []})
    assert (await answered(wire, data)).status == 403


async def test_users_of_a_reload(image, mirror, wire, handled, tmp_path):
    """Passwords count from their reload on."""
    data = kept(TAG)
    await until_inline(wire, data, handled)
    users = tmp_path / "users"
    users.write_text("u:$2b$04$abcdefghijklmnopqrstuuVx0yZQwqp4EBwUrs1Ov9yVEp7G0sV2K\n")
    await mirror.reload(access={"htpasswd_file": str(users), "anonymous": False})
    assert (await answered(wire, data)).status == 401


async def test_too_many_requests(image, hub, tmp_path, handled):
    """The limit of requests of one address counts those that are under way over its other connections."""
    async with MirrorUnderTest(hub, tmp_path / "store", limits={"requests_per_address": 2}) as mirror, Wire(mirror.port) as wire:
        data = kept(TAG)
        await until_inline(wire, data, handled)
        requests = mirror.peers[0].counts.requests
        assert requests.own == 0
        requests.own = 2
        assert (await answered(wire, data)).status == 429
        requests.own = 1
        assert (await answered(wire, data)).status == 200
        requests.own = 0


@pytest.mark.parametrize("header", ["Authorization: Basic dTpw", "Cookie: a=b", "X-Request-Id: mine", "Connection: close"])
async def test_never_kept(image, mirror, wire, handled, header):
    """Nothing that is secret, or of one request, is kept."""
    data = kept(TAG, header)
    await until_inline(wire, kept(TAG), handled)
    before = len(handled)
    for count in (1, 2, 3):
        async with Wire(mirror.port) as own:
            assert (await answered(own, data)).status == 200
        assert len(handled) == before + count


async def test_pieces_and_pipelines(image, mirror, wire, handled):
    """Requests are understood however they are cut into segments."""
    data = kept(TAG)
    await until_inline(wire, data, handled)
    other = kept(manifest_path(image.digest))
    for pieces in (
        [data + other, data],
        [data[:20], data[20:] + other, data],
        [b"\r\n" + data, data],
        [data[:-1], data[-1:], data],
    ):
        count = b"".join(pieces).count(b"GET ")
        for piece in pieces:
            await wire.send(piece)
            # Nothing else tells that the segment has been received by itself.
            await asyncio.sleep(0.01)
        replies = [await wire.reply() for _ in range(count)]
        assert [(reply.status, reply.body) for reply in replies] == [(200, image.raw)] * count
    # A request that begins with the bytes of another one's head is that other one's body.
    await wire.send(b"POST /v2/ HTTP/1.1\r\nHost: mirror\r\nContent-Length: " + str(len(data)).encode() + b"\r\n\r\n")
    await asyncio.sleep(0.01)
    await wire.send(data + data)
    assert [(await wire.reply()).status for _ in range(2)] == [405, 200]


async def test_idle_connection_ends(image, hub, tmp_path, monkeypatch, handled):
    """The time for the next request's headers counts from the last response, however that was given."""
    monkeypatch.setattr("mirror.listener.server._HEADERS_TIMEOUT_S", 1.0)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror, Wire(mirror.port) as wire:
        await until_inline(wire, kept(TAG), handled)
        for _ in range(4):
            await asyncio.sleep(0.4)
            assert (await answered(wire, kept(TAG))).status == 200
        assert await wire.ended() == b""


async def test_client_that_takes_nothing(hub, mirror, wire, handled):
    """What a client does not take is bounded: its requests then wait as usual."""
    image = hub.add_image(APP, "1", layers=[b"%d" % number for number in range(400)])
    data = kept(TAG)
    await until_inline(wire, data, handled)
    (connection,) = mirror.handlers
    wire.writer.transport.pause_reading()
    sent = 0
    while not connection._paused:
        await wire.send(data)
        sent += 1
        await asyncio.sleep(0)
    most = connection.transport.get_write_buffer_size()
    for _ in range(20):
        await wire.send(data)
        await asyncio.sleep(0)
    assert connection.transport.get_write_buffer_size() <= most + len(image.raw) + 1000
    wire.writer.transport.resume_reading()
    for _ in range(sent + 20):
        assert (await wire.reply()).body == image.raw


async def test_bounded_memory(image, mirror, wire, handled, monkeypatch):
    """Requests of which no two are alike do not fill the memory."""
    monkeypatch.setattr("mirror.listener.inline._MAX_ENTRIES", 3)
    await mirror.get(TAG)
    for number in range(10):
        assert (await answered(wire, kept(f"{TAG}?n={number}"))).status == 200
    assert (await answered(wire, kept(TAG, f"X-Long: {'x' * 2000}"))).status == 200
    assert len(mirror.inline_heads) <= 3
    assert all(len(head) <= 1024 for head in mirror.inline_heads)


async def test_cut_blob_is_no_hit(image, mirror, wire, handled):
    """A held blob that has become shorter is found out."""
    blob = image.layers[0].digest
    await mirror.get(f"/v2/{APP}/blobs/{blob}")
    await mirror.idle()
    data = kept(f"/v2/{APP}/blobs/{blob}")
    _, whole = await until_inline(wire, data, handled)
    with open(mirror.blob_path(blob), "r+b") as file:
        file.truncate(1)
    assert (await answered(wire, data)).body == whole.body


async def test_twice_fetched_blob_is_rechecked(image, mirror, wire, handled):
    """A client that fetches a damaged blob again and again does not get it for ever."""
    blob = image.layers[0].digest
    await mirror.get(f"/v2/{APP}/blobs/{blob}")
    await mirror.idle()
    data = kept(f"/v2/{APP}/blobs/{blob}")
    size = mirror.blob_path(blob).stat().st_size
    mirror.blob_path(blob).write_bytes(b"x" * size)
    good = image.layers[0].data

    async def fetched():
        return (await answered(wire, data)).body == good

    await eventually(fetched)
