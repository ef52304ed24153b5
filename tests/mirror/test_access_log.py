"""One line per request: who asked for what, and what came of it."""

import base64
import os

import bcrypt
import pytest

from mirror.service import logs
from tests.fakehub import Corrupt, Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, blob_path
from tests.support.waiting import eventually
from tests.support.wire import Wire, ask, request

SECRET = "s3cret-of-sixteen-letters"


@pytest.fixture
async def logged(hub, tmp_path):
    """A mirror that logs all requests."""
    async with MirrorUnderTest(hub, tmp_path / "store", log={"access": "all"}) as mirror:
        yield mirror


async def lines(mirror, count):
    """The lines so far, once there are so many: a line follows its answer."""
    await eventually(lambda: len(mirror.requests) >= count)
    assert len(mirror.requests) == count
    return mirror.requests


async def test_manifest(hub, logged):
    """A miss names the upstream, and a hit, also one that is answered where it is received, none."""
    image = hub.add_image(APP, "1")
    async with Wire(logged.port) as wire:
        for _ in range(4):
            await wire.send(f"GET {TAG} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            size = len((await wire.reply()).body)
    first, *hits = await lines(logged, 4)
    assert first["event"] == "request"
    common = {"client": "127.0.0.1", "method": "GET", "kind": "manifest", "registry": "docker.io", "repository": APP}
    answer = {"reference": "1", "digest": image.digest, "status": 200, "bytes": size}
    for line in (first, *hits):
        assert common.items() | answer.items() <= line.items()
        assert 0 <= line["first_byte"] <= line["seconds"] < 60
    assert first["outcome"] == "MISS"
    assert first["upstream"] == hub.url.partition("://")[2]
    assert [line["outcome"] for line in hits] == ["HIT"] * 3
    assert not any("upstream" in line for line in hits)
    assert len({line["request"] for line in logged.requests}) == 4
    assert [{*line} for line in hits] == [{*hits[0]}] * 3


async def test_blob(hub, logged):
    """A body that is streamed, a range of it, and a HEAD, which has none."""
    layer = hub.add_image(APP, "1", layers=[os.urandom(300_000)]).layers[0]
    await logged.get(TAG)
    await logged.get(blob_path(layer), headers={"X-Request-Id": "mine"})
    await logged.idle()
    await logged.get(blob_path(layer), headers={"Range": "bytes=10-19"})
    await logged.head(blob_path(layer))
    _, whole, part, head = await lines(logged, 4)
    assert [line["bytes"] for line in (whole, part, head)] == [300_000, 10, 0]
    assert [line["status"] for line in (whole, part, head)] == [200, 206, 200]
    assert (whole["outcome"], whole["request"], whole["reference"]) == ("MISS", "mine", str(layer.digest))
    assert whole["upstream"] == hub.url.partition("://")[2]


@pytest.mark.parametrize("access", ["off", "errors"])
async def test_levels(hub, tmp_path, access):
    """`errors` leaves out what went well; `off` leaves out all."""
    hub.add_image(APP, "1")
    async with MirrorUnderTest(hub, tmp_path / "store", log={"access": access}) as mirror:
        await mirror.get(TAG)
        await mirror.get(TAG)
        await mirror.get(f"/v2/{APP}/manifests/2")
        await mirror.get("/v2/nothing/of/this/kind")
        await mirror.get(TAG, "PUT")
        await ask(mirror.port, b"GET /v2/ HTTP/1.1\r\nHost x\r\n\r\n")
        found = [(line["status"], line["outcome"]) for line in mirror.requests]
        assert found == ([] if access == "off" else [(404, "ERROR"), (404, "ERROR"), (405, "ERROR"), (400, "ERROR")])
        if access == "errors":
            assert mirror.requests[0]["cause"].startswith("MANIFEST_UNKNOWN: ")
            assert mirror.requests[1]["path"] == "/v2/nothing/of/this/kind"


async def test_body_that_ends_short(hub, tmp_path):
    """A body that ends early is an error, although its status was 200; the line says how much was sent, and why."""
    layer = hub.add_image(APP, "1", layers=[os.urandom(400_000)]).layers[0]
    hub.script(Rule(kind="blob", times=None), Corrupt(at=10))
    async with MirrorUnderTest(hub, tmp_path / "store", log={"access": "errors"}) as mirror:
        await mirror.get(TAG)
        with pytest.raises(Exception, match=r"."):
            await mirror.get(blob_path(layer))
        (line,) = await lines(mirror, 1)
    assert line["status"] == 200
    assert line["bytes"] < 400_000
    assert f"should be {layer.digest}" in line["cause"]


async def test_user(hub, tmp_path):
    """A user is named once the password is right; passwords, and names that are only claimed, are not logged."""
    hub.add_image(APP, "1")
    users = tmp_path / "users"
    users.write_text(f"ci$1:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    settings = {"log": {"access": "all"}, "access": {"htpasswd_file": str(users)}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        for password in ("right", "wrong"):
            given = base64.b64encode(f"ci$1:{password}".encode()).decode()
            await mirror.get(TAG, headers={"Authorization": f"Basic {given}"})
        right, wrong = await lines(mirror, 2)
    assert (right["status"], right["user"]) == (200, "ci%241")
    assert wrong["status"] == 401
    assert "user" not in wrong
    assert "right" not in str(mirror.requests)


async def test_no_secrets(hub, logged, log):
    """A webhook's secret is not logged, nor a password in a target, nor a path that a program would expand."""
    await logged.get(f"/webhooks/dockerhub/{SECRET}", "POST")
    await ask(logged.port, request("/v2/${jndi:x}/" + "y" * 1000))
    for target in (f"http://me:{SECRET}@mirror/elsewhere", f"http://me:{SECRET}@mirror/v2/{APP}/manifests/none"):
        assert (await ask(logged.port, request(target))).status == 404
    webhook, strange, foreign, absent = await lines(logged, 4)
    assert SECRET not in str([webhook, foreign, absent, log])
    assert foreign["path"] == "http://…@mirror/elsewhere"
    assert "$" not in str(strange)
    assert len(strange["path"]) < 400


async def test_refusals_at_the_door(hub, tmp_path):
    """What admission refuses is logged as what the API refuses is."""
    settings = {"log": {"access": "errors"}, "access": {"networks": ["192.0.2.0/24"]}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        assert (await mirror.get(TAG)).status == 403
        (line,) = await lines(mirror, 1)
    assert (line["status"], line["outcome"], line["path"], line["client"]) == (403, "ERROR", TAG, "127.0.0.1")


async def test_reload(hub, logged, monkeypatch):
    """The setting may be changed while connections stay open."""
    hub.add_image(APP, "1")
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    await logged.get(TAG)
    await logged.reload(log={"access": "errors", "level": "warning"})
    await logged.get(TAG)
    hub.script(Rule(kind="manifest", times=None), Status(503))
    await logged.get(f"/v2/{APP}/manifests/2")
    assert [line["status"] for line in await lines(logged, 2)] == [200, 503]
