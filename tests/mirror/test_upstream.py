"""Upstream out of order: redirects, nonsense, silence; always an answer, in time, and with no secret in it."""

import asyncio
import base64
import os
import traceback

import bcrypt
import pytest

from tests.fakehub import (
    Chunked,
    Cut,
    Delay,
    Disconnect,
    ExpiredUrl,
    Headers,
    HeadWithoutDigest,
    HugeBody,
    HugeHeaders,
    NoHeaders,
    Redirect,
    RedirectLoop,
    Reset,
    Rule,
    Stall,
    Status,
    UntilClose,
    WrongLength,
)
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, blob_path
from tests.support.waiting import LIMIT, SOON

PASSWORD = "hunter2-never-to-be-seen"
# A client's password, and one that it is not.
CLIENTS = ("hunter3-never-to-be-seen", "hunter4-never-to-be-seen")


# ---- redirects


async def test_cdn_gets_no_authorization(hub, mirror):
    """A blob comes from the CDN by its signed address as it is, and without the registry's token."""
    image = hub.add_image(APP, "1")
    blob = image.layers[0]
    assert (await mirror.get(blob_path(blob))).body == blob.data
    assert [seen.authorization for seen in hub.find(host="cdn")] == [None]
    assert [seen.status for seen in hub.find(host="cdn")] == [200]


async def test_cdn_cookies_are_not_kept(hub, mirror):
    """What a CDN sets as cookies does not come back with the next request."""
    image = hub.add_image(APP, "1", layers=[b"one", b"two"])
    for blob in image.layers:
        await mirror.get(blob_path(blob))
    assert hub.count(host="cdn") == 2
    assert not [seen for seen in hub.requests if "Cookie" in seen.headers]


async def test_expired_address(hub, mirror):
    """A signed address that has expired is replaced by asking the registry again."""
    image = hub.add_image(APP, "1")
    blob = image.layers[0]
    hub.script(Rule(kind="blob", host="cdn"), ExpiredUrl())
    assert (await mirror.get(blob_path(blob))).body == blob.data
    assert hub.count("GET", "blob", host="registry", status=307) == 2


@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_redirect_loop(hub, mirror, kind):
    """An endless redirect is left after five hops."""
    image = hub.add_image(APP, "1")
    hub.auth = "none"
    path = TAG if kind == "manifest" else blob_path(image.layers[0])
    entry = hub.script(Rule(kind=kind, host="registry", times=None), RedirectLoop())
    answer = await mirror.get(path)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    # A blob is tried twice.
    assert entry.used == (6 if kind == "manifest" else 12)


async def test_five_hops(hub, mirror):
    """Five redirects in a row are followed."""
    image = hub.add_image(APP, "1")
    hub.auth = "none"
    hub.script(Rule(kind="manifest", host="registry", times=5), RedirectLoop())
    assert (await mirror.get(TAG)).body == image.raw


@pytest.mark.parametrize(
    "location",
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://user:password@127.0.0.1/x", "http://", "http://a:99999/", "nonsense:"],
)
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_redirect_to_where_nobody_should_go(hub, mirror, kind, location):
    """A redirect that leads to no web page is refused."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind=kind, times=None), Redirect(location))
    answer = await mirror.get(TAG if kind == "manifest" else blob_path(image.layers[0]))
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


async def test_redirect_to_nowhere(hub, mirror):
    """A redirect without a location is nonsense."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None), Status(307))
    assert (await mirror.get(TAG)).status == 503


# ---- what goes upstream


async def test_only_what_must_goes_upstream(hub, mirror):
    """Nothing of a client's headers goes upstream but the id of its request."""
    image = hub.add_image(APP, "1")
    headers = {
        "Authorization": "Bearer client-secret",
        "Proxy-Authorization": "Basic client-secret",
        "Cookie": "client-secret",
        "X-Forwarded-For": "10.1.2.3",
        "User-Agent": "client-agent",
        "Referer": "client-page",
        "Via": "1.1 client-proxy",
    }
    for path in (TAG, f"/v2/{APP}/tags/list", blob_path(image.layers[0])):
        assert (await mirror.get(path, headers=headers)).status == 200
    allowed = {"host", "accept", "accept-encoding", "user-agent", "x-request-id", "via", "authorization"}
    for seen in hub.requests:
        assert {name.lower() for name in seen.headers} <= allowed
        assert seen.headers["User-Agent"].startswith("registry-mirror/")
        assert seen.headers["Accept-Encoding"] == "identity"
        assert "client" not in str(seen.authorization)
        assert "client" not in seen.headers.get("Via", "")


# ---- nonsense

NONSENSE = [
    pytest.param(HugeHeaders(), id="huge headers"),
    pytest.param(Headers({"Content-Encoding": "gzip"}), id="encoded"),
    pytest.param(Status(200, body=b""), id="empty"),
    pytest.param(Status(204, body=b""), id="204"),
    pytest.param(Status(206), id="206"),
    pytest.param(Status(304, body=b""), id="304"),
    pytest.param(Status(418), id="418"),
    pytest.param(Status(599), id="599"),
    pytest.param(Disconnect(), id="closed"),
    pytest.param(Disconnect(reset=True), id="reset"),
    pytest.param(HugeBody(5 << 20), id="huge"),
    pytest.param(Cut(10), id="cut"),
    pytest.param(Reset(10), id="reset in the middle"),
    pytest.param(WrongLength(+10), id="too short"),
    pytest.param(WrongLength(-10), id="too long"),
    pytest.param(Chunked(endless=True), id="endless"),
    pytest.param(Chunked(after=10), id="short chunks"),
    pytest.param(UntilClose(after=10), id="short until close"),
]


@pytest.mark.parametrize("fault", NONSENSE)
async def test_nonsense_for_a_manifest(hub, mirror, quiet, fault):
    """Whatever upstream does, the answer is 503 or the right manifest, nothing wrong is kept, and all is well afterwards."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest"), fault)
    answer = await mirror.get(f"/v2/{APP}/manifests/{image.digest}")
    assert answer.status == 503 or answer.body == image.raw
    assert (await mirror.get(f"/v2/{APP}/manifests/{image.digest}")).body == image.raw
    quiet()


@pytest.mark.parametrize("fault", [Chunked(), UntilClose()])
async def test_manifest_without_length(hub, mirror, fault):
    """A manifest whose length upstream does not tell goes out with its length."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest"), fault)
    answer = await mirror.get(TAG)
    assert (answer.body, answer.headers["Content-Length"]) == (image.raw, str(len(image.raw)))


# ---- silence

SLOW = [
    pytest.param(Rule(kind="manifest", times=None), TAG, id="manifest"),
    pytest.param(Rule(kind="token", times=None), TAG, id="token"),
    pytest.param(Rule(kind="tags", times=None), f"/v2/{APP}/tags/list", id="tags"),
    pytest.param(Rule(kind="blob", host="registry", times=None), "blob", id="blob"),
    pytest.param(Rule(kind="blob", host="cdn", times=None), "blob", id="cdn"),
]


@pytest.mark.parametrize(("rule", "path"), SLOW)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_silence(hub, impatient, rule, path, method):
    """Upstream's silence ends in an answer after the time limit, on GET and HEAD alike."""
    image = hub.add_image(APP, "1")
    hub.redirect_head = True
    hub.script(rule, NoHeaders())
    async with asyncio.timeout(SOON):
        answer = await impatient.get(blob_path(image.layers[0]) if path == "blob" else path, method)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0


async def test_silence_in_a_manifest(hub, tmp_path):
    """A manifest that stops in the middle ends in an answer, too."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None), Stall(10))
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"stall_timeout": "300ms"}) as mirror:
        assert (await mirror.get(TAG)).status == 503


def test_time_limits_of_clients():
    """The default limits give an answer before containerd's 30 seconds are over."""
    from mirror.download.services import DownloadLimits
    from mirror.upstream import registry
    from mirror.upstream.http import Limits

    assert Limits().connect + Limits().headers < 25
    assert registry._TIMEOUT_S < 25
    assert DownloadLimits().first_byte_s < 25


async def test_patience_has_an_end(hub, mirror, monkeypatch):
    """Many slow steps, each within its own limit, do not add up for ever."""
    monkeypatch.setattr("mirror.upstream.registry._TIMEOUT_S", 0.5)
    hub.auth = "none"
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None), Delay(0.4), RedirectLoop())
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    # So many are asked for where every redirect is followed that may be.
    assert hub.count(kind="manifest") < 6


async def test_several_questions_have_one_end(hub, mirror, monkeypatch):
    """What takes several slow questions to upstream is answered in the time that clients give, and not later."""
    hub.auth = "none"
    image = hub.add_image(APP, "1")
    # Without a digest on the HEAD there has to be a GET, too.
    hub.script(Rule(kind="manifest", method="HEAD", times=None), Delay(0.4), HeadWithoutDigest())
    entry = hub.script(Rule(kind="manifest", method="GET", times=None), Delay(0.4))
    with monkeypatch.context() as patience:
        patience.setattr("mirror.registry.api._TIMEOUT_S", 0.6)
        assert (await mirror.head(TAG)).status == 503
    entry.remove()
    await hub.wait_for(at_least=1, kind="manifest", method="GET")
    answer = await mirror.get(f"/v2/{APP}/manifests/{image.digest}")
    assert (answer.status, answer.body) == (200, image.raw)


async def test_no_connection_free(hub, tmp_path):
    """Blobs that take all connections leave the way for manifests free."""
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"max_upstream_connections": 1}) as mirror:
        image = hub.add_image(APP, "1", layers=[b"x" * 300_000, b"y" * 300_000])
        gate = hub.gate(Rule(kind="blob", host="cdn"), after=100_000)
        asking = [asyncio.create_task(mirror.get(blob_path(blob))) for blob in image.layers]
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        assert (await mirror.get(TAG)).status == 200
        assert hub.count(kind="blob", host="cdn") == 1
        gate.release()
        assert [answer.sha256 for answer in await asyncio.gather(*asking)] == [blob.digest for blob in image.layers]


@pytest.mark.parametrize("upstreams", [1, 2])
async def test_no_connection_free_is_no_fault_of_upstream(hub, tmp_path, monkeypatch, upstreams):
    """Who waits in vain for a connection is told so; the upstream, which answers all others, does not count as out of order."""
    monkeypatch.setattr("mirror.upstream.registry._TIMEOUT_S", 1.0)
    entry = {"upstreams": [hub.url, hub.url.replace("127.0.0.1", "localhost")][:upstreams], "token_hosts": [hub.token_host]}
    settings = {
        "registries": {"docker.io": entry},
        "downloads": {"max_upstream_connections": 1, "stall_timeout": "20s"},
        "limits": {"downloads_per_address": 2},
    }
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        mirror.set_limits(queue=1.2)
        image = hub.add_image(APP, "1", layers=[b"x" * 300_000, b"y" * 300_000])
        gate = hub.gate(Rule(kind="blob", host="cdn"), after=100_000)
        asking = asyncio.create_task(mirror.get(blob_path(image.layers[0])))
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        refused = await mirror.get(blob_path(image.layers[1]))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert "busy" in refused.body.decode()
        assert await mirror.metric("upstream_up") >= 1
        assert all(endpoint.health.is_sound for endpoint in mirror.registry().upstreams)
        gate.release()
        assert (await asking).sha256 == image.layers[0].digest
        assert (await mirror.get(blob_path(image.layers[1]))).sha256 == image.layers[1].digest


# ---- secrets


async def test_secrets_stay_here(hub, tmp_path, log, caplog):
    """BasicAuthenticator, tokens and signed addresses are in no log line, no metric, no answer and no file of the store.

    The passwords are the mirror's own and those of clients, right and wrong ones; neither do these go upstream.
    """
    password, users = tmp_path / "password", tmp_path / "htpasswd"
    password.write_text(PASSWORD)
    users.write_bytes(b"alice:" + bcrypt.hashpw(CLIENTS[0].encode(), bcrypt.gensalt(4)))
    logins = [base64.b64encode(f"alice:{text}".encode()).decode() for text in CLIENTS]
    hub.users = {"robot": PASSWORD}
    entry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "username": "robot",
        "password_file": str(password),
    }
    settings = {"registries": {"docker.io": entry}, "tags": {"ttl": "0s"}, "access": {"htpasswd_file": users}}
    shown, statuses = [], set()
    async with MirrorUnderTest(hub, tmp_path / "store", **settings, log={"level": "debug", "access": "all"}) as mirror:
        image = hub.add_image(APP, "1", layers=[b"x" * 300_000])
        hub.private(APP, ["robot"])
        faults = [Status(500), Status(401), Status(403), Disconnect(), HugeHeaders(), Redirect("http://u:p@127.0.0.1/"), Cut(100)]
        for kind in ("manifest", "blob", "token"):
            for fault in [*faults, None]:
                if fault is not None:
                    hub.script(Rule(kind=kind), fault)
                hub.advance(400)
                for path in (TAG, blob_path(image.layers[0]), f"/v2/{APP}/tags/list"):
                    for number, headers in enumerate([{}, *({"Authorization": f"Basic {login}"} for login in logins)]):
                        async with mirror.session.get(mirror.url(path), headers=headers) as response:
                            statuses.add((number, response.status))
                            shown.append(repr(response.headers))
                            with_body = response.status != 200
                            shown.append((await response.content.read()).decode() if with_body else "")
        assert (await mirror.get(blob_path(image.layers[0]))).sha256 == image.layers[0].digest
        shown.append(str(await mirror.metrics()))
        assert len(mirror.requests) > 100
        shown.append(repr(mirror.requests))
        for path in ("status", f"explain?image={APP}:1", f"explain?image={APP}@{image.digest}", "images", "downloads", "sync"):
            async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/{path}") as response:
                assert response.status == 200
                shown.append(await response.text())
        async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/readyz") as response:
            shown.append(await response.text())
    shown += [repr(event) for event in log]
    shown += ["".join(traceback.format_exception(event["exc_info"])) for event in log if "exc_info" in event]
    shown += [record.getMessage() for record in caplog.records]
    shown += [path.read_bytes().decode("latin-1") for path in (tmp_path / "store").rglob("*") if path.is_file()]
    sent = {seen.authorization.split(" ")[1] for seen in hub.requests if seen.authorization}
    signatures = {seen.query.partition("verify=")[2] for seen in hub.find(host="cdn")}
    assert len(sent) > 2
    assert signatures
    assert {(1, 200), (2, 401)} <= statuses
    assert (2, 200) not in statuses
    for secret in {PASSWORD, *sent, *signatures, *CLIENTS, *logins}:
        assert not [text for text in shown if secret in text]
    for secret in (*CLIENTS, *logins):
        assert not [seen for seen in hub.requests if secret in f"{seen.path} {seen.query} {dict(seen.headers)}"]


async def test_connections_that_have_been_idle(hub, tmp_path):
    """A connection that has waited for the next request for longer than a body may be silent is as good as new."""
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"stall_timeout": "300ms"}) as mirror:
        for seed in range(3):
            image = hub.add_image(APP, str(seed), layers=[os.urandom(300_000)])
            assert (await mirror.get(f"/v2/{APP}/manifests/{seed}")).status == 200
            assert (await mirror.get(blob_path(image.layers[0]))).body == image.layers[0].data
            await mirror.idle()
            # What the client library's timer would take for silence.
            await asyncio.sleep(0.4)
