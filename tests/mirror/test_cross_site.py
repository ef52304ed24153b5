"""What a web page in the operator's browser can do: read nothing, change nothing (DNS rebinding, cross-site requests)."""

import json

import pytest
import pytest_asyncio

from tests.support.mirrors import SHARED, MirrorUnderTest
from tests.support.wire import ask

APP = "library/app"
JSON = "Content-Type: application/json"
ORDERS = {
    "purge": ("POST", "/api/v1/purge", '{"match": "app"}'),
    "sync": ("POST", "/api/v1/sync", ""),
    "warm": ("POST", "/api/v1/warm", '{"images": ["app:1"]}'),
    "delete": ("DELETE", "/api/v1/images/app:1", ""),
}


async def send(port, method, path, body="", *headers, host="127.0.0.1:5001"):
    """The answer to a request with exactly these headers."""
    lines = [f"{method} {path} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), "Connection: close", *headers]
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    return await ask(port, "\r\n".join([*lines, "", ""]).encode() + body.encode())


@pytest.fixture
async def held(hub, mirror):
    """An image that must not be touched."""
    image = hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    return image


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_image(shared_hub, shared_mirror):
    """The same in the shared mirror."""
    image = shared_hub.add_image(APP, "1")
    await shared_mirror.get(f"/v2/{APP}/manifests/1")
    return image


async def nothing_done(mirror, image):
    state = json.loads((await send(mirror.admin_port, "GET", "/api/v1/sync")).body)
    return mirror.holds(image.digest) and not state["waiting"] and not state["running"] and not state["last"]["sync"]


@SHARED
@pytest.mark.parametrize("order", ["purge", "sync", "warm"])
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_what_a_form_sends(shared_mirror, shared_image, order, kind):
    """A form, or a script that asks nobody before, can only send these types, and they are refused, also without a body."""
    method, path, body = ORDERS[order]
    reply = await send(shared_mirror.admin_port, method, path, body, *([] if kind is None else [f"Content-Type: {kind}"]))
    assert (reply.status, set(json.loads(reply.body))) == (415, {"error"})
    assert await nothing_done(shared_mirror, shared_image)


FOREIGN = {
    "origin": ["Origin: http://evil.example"],
    "no origin to be named": ["Origin: null"],
    "another port": ["Origin: http://127.0.0.1:8080"],
    "no port": ["Origin: http://127.0.0.1"],
    "cross-site": ["Sec-Fetch-Site: cross-site"],
    "same-site": ["Sec-Fetch-Site: same-site"],
    "both": ["Sec-Fetch-Site: cross-site", "Origin: http://127.0.0.1:5001"],
}


@SHARED
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_foreign_pages_change_nothing(shared_mirror, shared_image, order, headers):
    """What a browser says comes from another origin is refused whatever else it says."""
    method, path, body = ORDERS[order]
    reply = await send(shared_mirror.admin_port, method, path, body, JSON, *headers)
    assert (reply.status, set(json.loads(reply.body))) == (403, {"error"})
    assert await nothing_done(shared_mirror, shared_image)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Origin: http://127.0.0.1:5001"],
        ["Origin: http://127.0.0.1:5001", "Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none"],
    ],
    ids=["none", "origin", "page", "user"],
)
async def test_own_pages_and_scripts_may(mirror, held, order, headers):
    """An operator's script, and a page of the address itself."""
    method, path, body = ORDERS[order]
    assert (
        await send(mirror.admin_port, method, path, body, "Content-Type: application/json; charset=utf-8", *headers)
    ).status < 300


async def test_links_may_be_followed(mirror):
    """Reading is no change: a link on another page leads here."""
    for path in ("/api/v1/images", "/metrics", "/healthz"):
        assert (await send(mirror.admin_port, "GET", path, "", "Sec-Fetch-Site: cross-site")).status == 200


async def test_a_preflight_is_not_granted(mirror):
    """A browser that asks whether a script may is not told yes."""
    headers = ["Origin: http://evil.example", "Access-Control-Request-Method: POST"]
    reply = await send(mirror.admin_port, "OPTIONS", "/api/v1/purge", "", *headers)
    assert reply.status in (403, 405)
    assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_with_a_token_the_token_decides(hub, tmp_path):
    """No page has the token: whoever has it may send what they like."""
    (tmp_path / "token").write_text("s3cret")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(tmp_path / "token")}) as mirror:
        bearer = "Authorization: Bearer s3cret"
        assert (await send(mirror.admin_port, "POST", "/api/v1/purge", '{"match": "app"}', bearer)).status == 200
        assert (await send(mirror.admin_port, "POST", "/api/v1/purge", '{"match": "app"}', JSON)).status == 401


# ---- DNS rebinding


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5000", "127.0.0.1.evil.example"])
async def test_foreign_names(hub, mirror, log, host):
    """A name that is led to this host reads nothing at either address, and is one line in the log."""
    image = hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    for path in ("/v2/", f"/v2/{APP}/manifests/1", f"/v2/{APP}/blobs/{image.layers[0].digest}", "/v2/_catalog"):
        reply = await send(mirror.port, "GET", path, host=host)
        assert (reply.status, reply.error()["code"]) == (403, "DENIED")
    for path in ("/api/v1/images", "/api/v1/sync", "/"):
        reply = await send(mirror.admin_port, "GET", path, host=host)
        assert (reply.status, set(json.loads(reply.body))) == (403, {"error"})
    assert await mirror.metric("refused_total", reason="host") == 7
    assert [event["host"] for event in log if event["event"] == "client_refused"] == [host] * 7


@SHARED
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]:5001", "localhost:1", "a.localhost", "host.docker.internal", "mirror", "", None]
)
async def test_own_names(shared_mirror, host):
    """Addresses, names of this host, and none at all, as old clients have it."""
    if host is None:
        assert (await ask(shared_mirror.port, b"GET /v2/ HTTP/1.0\r\n\r\n")).status == 200
        return
    assert (await send(shared_mirror.port, "GET", "/v2/", host=host)).status == 200
    assert (await send(shared_mirror.admin_port, "GET", "/api/v1/images", host=host)).status == 200


async def test_what_machines_ask_for_takes_any_name(mirror):
    """Health, metrics and webhooks are asked for by whatever name."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await send(mirror.admin_port, "GET", path, host="monitored.example")).status == 200
    for port in (mirror.port, mirror.admin_port):
        assert (await send(port, "POST", "/webhooks/dockerhub/x", host="mirror.example")).status == 404


async def test_configured_names(mirror):
    """`hosts` adds names, each for its own address, and a reload changes them."""
    names = {"access": {"hosts": ["Registry.example."]}, "admin": {"listen": "127.0.0.1:0", "hosts": ["admin.example"]}}
    await mirror.reload(**names)
    assert (await send(mirror.port, "GET", "/v2/", host="registry.example:5000")).status == 200
    assert (await send(mirror.port, "GET", "/v2/", host="admin.example")).status == 403
    assert (await send(mirror.admin_port, "GET", "/api/v1/images", host="ADMIN.example")).status == 200
    assert (await send(mirror.admin_port, "GET", "/api/v1/images", host="registry.example")).status == 403
    await mirror.reload(access={"hosts": []})
    assert (await send(mirror.port, "GET", "/v2/", host="registry.example:5000")).status == 403


async def test_elsewhere_any_name(hub, tmp_path):
    """At an address that others reach, names are theirs to choose."""
    async with MirrorUnderTest(hub, tmp_path / "store", listen="0.0.0.0:0") as mirror:
        assert (await send(mirror.port, "GET", "/v2/", host="anything.example")).status == 200


# ---- audit


async def test_every_change_is_one_line(mirror, held, log):
    """Each order is in the log once, with what was ordered and by whom."""
    for method, path, body in ORDERS.values():
        assert (await send(mirror.admin_port, method, path, body, JSON)).status < 300
    lines = [event for event in log if event["event"] == "audit"]
    assert [event["action"] for event in lines] == ["purge", "sync", "warm", "purge"]
    assert {event["client"] for event in lines} == {"127.0.0.1"}


async def test_what_is_refused_is_told(mirror, log):
    """A page that tries is seen by the operator; one that tries again and again does not fill the log."""
    for _ in range(50):
        await send(mirror.admin_port, "POST", "/api/v1/purge", "{}", JSON, "Origin: http://evil.example")
    lines = [event for event in log if event["event"] == "audit"]
    assert 1 <= len(lines) < 25
    assert (lines[0]["action"], lines[0]["path"]) == ("refused", "/api/v1/purge")
