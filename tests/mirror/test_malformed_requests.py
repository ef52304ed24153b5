"""What clients send that no client should: the right answer, nothing outside the store, and the server lives on."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from tests.support.mirrors import SHARED
from tests.support.names import APP
from tests.support.wire import Wire, ask, request

HEX = "a" * 64
PING = request("/v2/")


def outside(mirror):
    """Every file around the store, and in it all content."""
    files = {path for path in mirror.store_path.parent.rglob("*") if path.is_file()}
    content = [mirror.store_path / name for name in ("blobs", "partial", "tmp")]
    return {path for path in files if mirror.store_path not in path.parents or any(c in path.parents for c in content)}


BAD_TARGETS = [
    ("/v2/../../etc/passwd/manifests/1", "NAME_INVALID"),
    ("/v2/%2e%2e/%2e%2e/etc/manifests/1", "NAME_INVALID"),
    (f"/v2/..%2f..%2fetc/blobs/sha256:{HEX}", "NAME_INVALID"),
    ("/v2/Library/App/manifests/1", "NAME_INVALID"),
    (f"/v2/{'a' * 300}/manifests/1", "NAME_INVALID"),
    ("/v2/lib%00rary/app/manifests/1", "NAME_INVALID"),
    ("/v2/lib%0d%0aX-Evil:%201/manifests/1", "NAME_INVALID"),
    ("/v2/l%C3%AFb/app/manifests/1", "NAME_INVALID"),
    ("/v2/%zz/manifests/1", "NAME_INVALID"),
    (f"/v2/{APP}/manifests/..", "TAG_INVALID"),
    (f"/v2/{APP}/manifests/1%0a", "TAG_INVALID"),
    (f"/v2/{APP}/manifests/{'1' * 300}", "TAG_INVALID"),
    (f"/v2/{APP}/manifests/1#fragment", "TAG_INVALID"),
    (f"/v2/{APP}/manifests/sha256:..%5c..%5cetc%5cpasswd", "DIGEST_INVALID"),
    (f"/v2/{APP}/blobs/sha256:{HEX.upper()}", "DIGEST_INVALID"),
    (f"/v2/{APP}/blobs/sha256:{HEX[:-1]}", "DIGEST_INVALID"),
    (f"/v2/{APP}/blobs/md5:{HEX[:32]}", "DIGEST_INVALID"),
    (f"/v2/{APP}/blobs/..", "DIGEST_INVALID"),
    (f"/v2/{APP}/referrers/latest", "DIGEST_INVALID"),
    ("/v2/%ff%fe/manifests/1", "UNSUPPORTED"),
    (f"/v2/{APP}/manifests/1?" + "a=1&" * 50, "UNSUPPORTED"),
    (f"/v2/{APP}/manifests/1?ns=..%2f..", "NAME_INVALID"),
]


@SHARED
@pytest.mark.parametrize(("target", "code"), BAD_TARGETS)
async def test_bad_targets(shared_hub, shared_mirror, quiet, target, code):
    """A malformed target is 400 with a code that says what is wrong, asks upstream nothing and touches no file."""
    before = outside(shared_mirror)
    reply = await ask(shared_mirror.port, request(target))
    assert reply.status == 400
    assert reply.error()["code"] == code
    head = await ask(shared_mirror.port, request(target, method="HEAD"), head=True)
    assert (head.status, head.headers["content-type"]) == (400, "application/json")
    assert sum(shared_hub.accepted.values()) == 0
    assert outside(shared_mirror) == before
    quiet()


BAD_HTTP = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(50)),
    "text": b"hello world\r\n\r\n",
    "unknown method": request("/v2/", method="FROB"),
    "lower-case method": request("/v2/", method="get"),
    "raw NUL": request(b"/v2/a\x00b/manifests/1"),
    "raw UTF-8": request("/v2/lïbrary/manifests/1"),
    "raw bytes": request(b"/v2/\xff\xfe/manifests/1"),
    "relative target": request("v2/"),
    "blank in target": request("/v2/a b/manifests/1"),
    "HTTP/1.2": request("/v2/", version="HTTP/1.2"),
    "HTTP/3.0": request("/v2/", version="HTTP/3.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /v2/ HTTP/1.1\r\n\r\n",
    "no colon": request("/v2/", "nonsense"),
    "NUL in name": request("/v2/", b"X\x00Y: 1"),
    "NUL in value": request("/v2/", b"X: a\x00b"),
    "folded header": request("/v2/", "X: a", " b"),
    "two lengths": request("/v2/", "Content-Length: 5", "Content-Length: 6") + b"hello",
    "length and chunks": request("/v2/", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "negative length": request("/v2/", "Content-Length: -5"),
    "long line": request("/v2/" + "a" * 20_000),
    "long header": request("/v2/", "X: " + "a" * 20_000),
    "many headers": request("/v2/", *(f"X{number}: a" for number in range(500))),
}


@pytest.mark.parametrize("data", BAD_HTTP.values(), ids=BAD_HTTP)
async def test_bad_http(mirror, log, quiet, data):
    """What is no proper HTTP is 400 in the API's form, the connection ends, one line is logged, and others are served."""
    async with Wire(mirror.port) as wire:
        await wire.send(data)
        reply = await wire.reply()
        assert await wire.ended() == b""
    assert reply.status == 400
    assert reply.error()["code"] == "UNSUPPORTED"
    assert reply.headers["server"] == "registry-mirror"
    assert [event["event"] for event in log if event["event"].startswith("request_")] == ["request_malformed"]
    quiet()
    assert (await ask(mirror.port, PING)).status == 200


async def test_ten_thousand_headers(mirror, quiet):
    """Endless headers are refused before they are all read; the client gets 400, or the end if it would not stop to look."""
    data = request("/v2/", *(f"X{number}: a" for number in range(10_000)))
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        assert (await ask(mirror.port, data)).status == 400
    quiet()
    assert (await ask(mirror.port, PING)).status == 200


async def test_refused_secret_is_not_logged(mirror, log):
    """A header that is too long to be taken is not repeated: it may be a credential."""
    reply = await ask(mirror.port, request("/v2/", "Authorization: Bearer hunter2" + "a" * 20_000))
    assert reply.status == 400
    assert "hunter2" not in f"{reply} {log}"


@pytest.mark.parametrize(
    "headers",
    [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"), ("Expect: 100-continue", "")],
)
async def test_body_on_get(hub, mirror, headers):
    """A body on a GET is read over, and the next request on the connection is answered."""
    header, body = headers
    image = hub.add_image(APP, "1")
    first = f"GET /v2/{APP}/manifests/1 HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n{body}".encode()
    async with Wire(mirror.port) as wire:
        await wire.send(first + PING)
        assert (await wire.reply()).body == image.raw
        assert (await wire.reply()).body == b"{}"
        assert await wire.ended() == b""


async def test_body_that_never_comes(mirror):
    """An announced body that does not come does not keep the answer waiting."""
    async with Wire(mirror.port) as wire:
        await wire.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nhello")
        assert (await wire.reply()).status == 200


async def test_http_1_0(hub, mirror):
    """HTTP/1.0 gets its answer and the end of the connection, or keeps it if it asks to."""
    async with Wire(mirror.port) as wire:
        await wire.send(b"GET /v2/ HTTP/1.0\r\n\r\n")
        assert (await wire.reply()).body == b"{}"
        assert await wire.ended() == b""


async def test_http_1_0_blob(hub, mirror):
    """A blob goes to an HTTP/1.0 client whole and unchunked, cold and warm."""
    data = os.urandom(300_000)
    digest = hub.add_blob(APP, data)
    for _ in range(2):
        async with Wire(mirror.port) as wire:
            await wire.send(f"GET /v2/{APP}/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
            reply = await wire.reply()
            assert "transfer-encoding" not in reply.headers
            assert reply.body == data
            assert await wire.ended() == b""


async def test_pipelining(hub, mirror):
    """Requests sent without waiting are answered in their order, slow ones and bad ones among them."""
    image = hub.add_image(APP, "1")
    targets = [f"/v2/{APP}/manifests/1", "/v2/", "/v2/UPPER/manifests/1", f"/v2/{APP}/blobs/{image.layers[0].digest}"] * 5
    async with Wire(mirror.port) as wire:
        await wire.send("".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets).encode())
        replies = [await wire.reply() for _ in targets]
    assert [reply.status for reply in replies] == [200, 200, 400, 200] * 5
    assert {reply.body for reply in replies[::4]} == {image.raw}
    assert {reply.body for reply in replies[3::4]} == {image.layers[0].data}


async def test_absolute_form(hub, mirror):
    """A target in absolute form, as proxies are sent it, means its path (RFC 9112 section 3.2.2)."""
    image = hub.add_image(APP, "1")
    assert (await ask(mirror.port, request("http://any.example/v2/"))).status == 200
    assert (await ask(mirror.port, request(f"http://any.example/v2/{APP}/manifests/1"))).body == image.raw


async def test_absurd_ranges(hub, mirror, quiet):
    """A range that makes no sense gets the whole, one outside gets 416; none gets anything else."""
    data = os.urandom(1000)
    digest = hub.add_blob(APP, data)
    whole = ["bytes", "bytes=", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1;", "bytes=٣-٤"]
    many = "bytes=" + ",".join(f"{at}-{at}" for at in range(1000))
    outside_it = ["bytes=1000-", "bytes=5-2", "bytes=99999999999999999999999-", "bytes=-0", "bytes=5000-6000"]
    target = f"/v2/{APP}/blobs/{digest}"
    for value in [*whole, many, "bytes=" + "0-," * 2000]:
        reply = await ask(mirror.port, request(target, f"Range: {value}"))
        assert (reply.status, reply.body) == (200, data)
    for value in outside_it:
        reply = await ask(mirror.port, request(target, f"Range: {value}"))
        assert (reply.status, reply.headers["content-range"]) == (416, "bytes */1000")
        assert reply.error()["code"] == "RANGE_INVALID"
    reply = await ask(mirror.port, request(target, "Range: bytes=990-99999999999999999999999999"))
    assert (reply.status, reply.body) == (206, data[990:])
    quiet()


async def test_store_holds_what_it_should(hub, mirror):
    """After all kinds of digests and names, the store has its own directories and nothing beside it has appeared."""
    image = hub.add_image(APP, "1")
    for target, _ in BAD_TARGETS:
        await ask(mirror.port, request(target))
    await ask(mirror.port, request(f"/v2/{APP}/manifests/1"))
    expected = mirror.blob_path(image.digest)
    found = {path for path in outside(mirror) if Path("blobs") in path.relative_to(mirror.store_path).parents}
    assert found == {expected}
    assert {path.name for path in mirror.store_path.parent.iterdir()} == {"store"}
