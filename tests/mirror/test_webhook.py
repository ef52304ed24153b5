"""Docker Hub's webhook: whoever knows the secret can have an image looked at, and nothing else."""

import io
import json
import logging
from urllib.parse import quote

import bcrypt
import pytest
from yarl import URL

from mirror.admin import push_webhook
from mirror.admin.push_webhook import parse_push
from mirror.core.names import Repository, Tag
from tests.mirror.syncing import Orders, pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.receiver import Receiver
from tests.support.waiting import eventually
from tests.support.wire import Wire

SECRET = "one/hundred %41pes & 0123456789"
QUOTED = "one%2Fhundred%20%2541pes%20&%200123456789"
GUESS = "a-guess-that-is-wrong"
HOOK = f"/webhooks/dockerhub/{QUOTED}"
ADDRESSES = ("registry", "admin")


def payload(name=APP, tag="1", **more):
    """What Docker Hub sends."""
    return {
        "callback_url": "https://registry.hub.docker.com/u/svendowideit/testhook/hook/2141b5bi5i5b02bec211i4eeih0242eg11000a/",
        "push_data": {"pushed_at": 1.7e9, "pusher": "someone", "tag": tag, "images": []},
        "repository": {
            "repo_name": name,
            "name": name.rpartition("/")[2],
            "namespace": name.partition("/")[0],
            "is_private": False,
        },
        **more,
    }


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "webhook.secret"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
async def mirror(hub, tmp_path, secret_file):
    """A mirror that takes webhooks."""
    async with MirrorUnderTest(hub, tmp_path / "store", sync={"webhook_secret_file": str(secret_file)}) as under_test:
        yield under_test


async def ask(mirror, address="registry", path=HOOK, method="POST", **kwargs):
    """Status and JSON of an answer."""
    port = mirror.port if address == "registry" else mirror.admin_port
    url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
    async with mirror.session.request(method, url, **kwargs) as response:
        return response.status, json.loads(await response.read() or b"null")


async def untouched(hub, mirror):
    """Nothing has been ordered, and upstream has been asked nothing."""
    state = await Orders(mirror).state()
    return not state["waiting"] and not state["running"] and not state["last"]["sync"] and not sum(hub.accepted.values())


# ---- what it does


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_push_is_looked_at(hub, mirror, monkeypatch, address):
    """An image that is held has its new content complete before anybody pulls it; a second look stands for later."""
    monkeypatch.setattr("mirror.admin.sync_operations._RECHECK_AFTER_S", 3600.0)
    hub.add_image(APP, "1", layers=[b"old"])
    await pull(mirror, APP, "1")
    new = hub.add_image(APP, "1", layers=[b"new"])
    assert await ask(mirror, address, json=payload()) == (202, {"accepted": True})
    orders = Orders(mirror)
    await orders.until(lambda state: state["last"]["sync"] and not state["running"])
    assert mirror.holds(new.digest)
    assert mirror.holds(new.layers[0].digest)
    hub.reset_counters()
    assert (await pull(mirror, APP, "1"))[0] == new.digest
    assert hub.count("GET", "manifest") + hub.count("GET", "blob") + hub.count("HEAD", "manifest") == 0
    (waiting,) = (await orders.state())["waiting"]
    assert waiting["images"] == [f"docker.io/{APP}:1"]
    assert waiting["after"] - waiting["asked"] <= 3600


async def test_many_pushes_are_one_look(hub, mirror, monkeypatch):
    """However often Docker Hub tells, the same image does not wait twice."""
    monkeypatch.setattr("mirror.admin.sync_operations._RECHECK_AFTER_S", 3600.0)
    hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    for _ in range(5):
        assert await ask(mirror, json=payload()) == (202, {"accepted": True})
    assert len((await Orders(mirror).state())["waiting"]) <= 2


async def test_a_configured_image_is_brought(hub, tmp_path, secret_file):
    """A tag that nobody has pulled, but that matches what is kept, is fetched; one that does not match is ignored."""
    sync = {"webhook_secret_file": str(secret_file), "images": [{"image": "app:1.*", "versions": ">=1.5"}]}
    async with MirrorUnderTest(hub, tmp_path / "store", sync=sync) as mirror:
        await Orders(mirror).until(lambda state: state["last"]["schedule"])
        image = hub.add_image(APP, "1.6")
        assert await ask(mirror, json=payload(tag="1.6")) == (202, {"accepted": True})
        assert await ask(mirror, json=payload(tag="1.4")) == (202, {"accepted": False})
        assert await ask(mirror, json=payload(tag="2.0")) == (202, {"accepted": False})
        await Orders(mirror).until(lambda state: state["last"]["sync"] and not state["running"])
        assert mirror.holds(image.layers[0].digest)


@pytest.mark.parametrize("name", ["library/other", "someone/app", APP])
async def test_an_unknown_image_is_ignored(hub, mirror, name, log):
    """What is neither held nor configured here changes nothing; it is one line in the log."""
    assert await ask(mirror, json=payload(name, "2")) == (202, {"accepted": False})
    assert await untouched(hub, mirror)
    (event,) = [event for event in log if event["event"] == "audit"]
    assert (event["action"], event["accepted"], event["image"]) == ("webhook", False, f"docker.io/{name}:2")


async def test_urls_in_it_are_not_followed(hub, mirror):
    """Neither the callback's nor any other: they could lead inside."""
    hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    async with Receiver() as victim:
        body = payload(callback_url=victim.url)
        body["repository"]["repo_url"] = body["repository"]["dockerfile"] = victim.url
        assert await ask(mirror, json=body) == (202, {"accepted": True})
        await Orders(mirror).until(lambda state: state["last"]["sync"] and not state["running"])
        assert victim.received == []


# ---- who may


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_wrong_secret(hub, mirror, log, address):
    """It is as if there were nothing here, whatever is asked; counted, and logged without what was tried."""
    guesses = [GUESS, "", QUOTED[:-1], QUOTED + "x", SECRET[:3], "x/" + QUOTED, QUOTED + "/", "%ff%00"]
    for count, guess in enumerate(guesses, 1):
        for method in ("POST", "GET", "DELETE"):
            status, _ = await ask(mirror, address, f"/webhooks/dockerhub/{guess}", method, json=payload())
            assert status == 404, (guess, method)
        assert await mirror.metric("refused_total", reason="webhook") == 3 * count, guess
    assert await untouched(hub, mirror)
    event = next(event for event in log if event["event"] == "audit")
    assert (event["action"], event["refused"], event["client"]) == ("webhook", "wrong secret", "127.0.0.1")
    assert GUESS not in str(log)


async def test_guessing_does_not_flood_the_log(mirror, log):
    """Every guess is counted, and not every one logged."""
    for _ in range(20):
        assert (await ask(mirror, path="/webhooks/dockerhub/x"))[0] == 404
    assert await mirror.metric("refused_total", reason="webhook") == 20
    assert len([event for event in log if event["event"] == "audit"]) < 20


@pytest.mark.parametrize("address", ADDRESSES)
async def test_without_a_secret(hub, tmp_path, address):
    """Nothing is configured: nothing is there, and no secret, not even an empty one, is right."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for path in (HOOK, "/webhooks/dockerhub/", "/webhooks/dockerhub/None"):
            assert (await ask(mirror, address, path, json=payload()))[0] == 404
        assert await untouched(hub, mirror)


async def test_the_comparison_takes_the_same_time(mirror, monkeypatch):
    """`hmac.compare_digest` over bytes, and nothing before it, decides."""
    seen = []

    def yes(given, secret):
        seen.append((given, secret))
        return True

    monkeypatch.setattr(push_webhook.hmac, "compare_digest", yes)
    assert await ask(mirror, path="/webhooks/dockerhub/x%20y", json=payload()) == (202, {"accepted": False})
    assert seen == [(b"x y", SECRET.encode())]


async def test_the_file_is_followed(hub, mirror, secret_file):
    """A new secret counts at once, and the old one no more; with an empty file or none nothing is right."""
    secret_file.write_text("0123456789abcdef")
    assert (await ask(mirror, json=payload()))[0] == 404
    assert (await ask(mirror, path="/webhooks/dockerhub/0123456789abcdef", json=payload()))[0] == 202
    secret_file.write_text("")
    for path in ("", "0123456789abcdef"):
        assert (await ask(mirror, path=f"/webhooks/dockerhub/{path}", json=payload()))[0] == 404
    secret_file.unlink()
    assert (await ask(mirror, path="/webhooks/dockerhub/0123456789abcdef", json=payload()))[0] == 404


@pytest.mark.parametrize("short", ["", "fifteen-letters", "  fifteen-letters\n", "ääääääääääääääa"])
async def test_a_renewed_secret_is_no_shorter(mirror, secret_file, short, log):
    """What would not do at the start does not do later: nothing is right then, and the log says why without the secret."""
    secret_file.write_text(short)
    for path in (quote(short.strip()), QUOTED):
        assert (await ask(mirror, path=f"/webhooks/dockerhub/{path}", json=payload()))[0] == 404
    assert [event["event"] for event in log if event["log_level"] == "error"] == ["webhook_secret_refused"] * 2
    assert "fifteen" not in str(log)
    secret_file.write_text("0123456789abcdef")
    assert (await ask(mirror, path="/webhooks/dockerhub/0123456789abcdef", json=payload()))[0] == 202


async def test_reload_names_another_file(mirror, tmp_path):
    """The key can be set, changed and taken away while the mirror runs."""
    (tmp_path / "another").write_text("0123456789abcdef")
    await mirror.reload(sync={"interval": "0", "webhook_secret_file": str(tmp_path / "another")})
    assert (await ask(mirror, path="/webhooks/dockerhub/0123456789abcdef", json=payload()))[0] == 202
    await mirror.reload(sync={"interval": "0"})
    assert (await ask(mirror, path="/webhooks/dockerhub/0123456789abcdef", json=payload()))[0] == 404


async def test_no_user_is_needed(hub, tmp_path, secret_file):
    """Docker Hub has no account here: the secret is its credential, at the webhook and nowhere else."""
    (tmp_path / "htpasswd").write_text(f"alice:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    settings = {
        "access": {"htpasswd_file": str(tmp_path / "htpasswd"), "anonymous": False},
        "sync": {"webhook_secret_file": str(secret_file)},
    }
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        assert await ask(mirror, json=payload()) == (202, {"accepted": False})
        assert (await ask(mirror, path="/webhooks/dockerhub/x", json=payload()))[0] == 404
        for path in ("/v2/", "/webhooks/", f"/webhooks/dockerhub/../../v2/{APP}/manifests/1", f"/v2{HOOK}", f"/{HOOK}"):
            assert (await ask(mirror, path=path, method="GET"))[0] in (401, 404)
        assert (await ask(mirror, path="/v2/", method="GET"))[0] == 401


async def test_networks_and_limits_count(hub, tmp_path, secret_file):
    """A client that may not connect may not use a webhook, either."""
    settings = {"access": {"networks": ["10.0.0.0/8"]}, "sync": {"webhook_secret_file": str(secret_file)}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        assert (await ask(mirror, json=payload()))[0] == 403
        assert (await ask(mirror, "admin", json=payload()))[0] == 202


async def test_requests_at_a_time_count(hub, tmp_path, secret_file):
    """Those who send their bodies slowly take up the places of their own address."""
    settings = {"limits": {"requests_per_address": 1}, "sync": {"webhook_secret_file": str(secret_file)}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror, Wire(mirror.port) as wire:
        await wire.send(f"POST {HOOK} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        await eventually(lambda: mirror.in_progress)
        assert (await ask(mirror, json=payload()))[0] == 429


async def test_the_admin_address_wants_its_token(hub, tmp_path, secret_file, log, caplog):
    """With a token configured both are wanted; whoever has only the secret does not find it in the log."""
    (tmp_path / "token").write_text("s3cret")
    settings = {"admin": {"token_file": str(tmp_path / "token")}, "sync": {"webhook_secret_file": str(secret_file)}}
    bearer = {"Authorization": "Bearer s3cret"}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        for path in (HOOK, f"/{HOOK}", "/webhooks/dockerhub/" + GUESS, "/webhooks/docker/" + GUESS):
            assert (await ask(mirror, "admin", path, json=payload()))[0] == 401
        assert (await ask(mirror, "admin", json=payload(), headers=bearer))[0] == 202
        assert (await ask(mirror, "admin", "/webhooks/dockerhub/" + GUESS, json=payload(), headers=bearer))[0] == 404
        assert (await ask(mirror, "registry", json=payload()))[0] == 202
    for secret in (SECRET, QUOTED, GUESS):
        assert secret not in str(log) + caplog.text


# ---- what it takes


@pytest.mark.parametrize("address", ADDRESSES)
async def test_only_post(mirror, address):
    """Whoever knows the secret and does something else is told what is taken."""
    port = mirror.port if address == "registry" else mirror.admin_port
    url = URL(f"http://127.0.0.1:{port}{HOOK}", encoded=True)
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
        async with mirror.session.request(method, url) as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST"), method


BAD = {
    "empty": b"",
    "garbage": b"\x00\xff not JSON",
    "cut": json.dumps(payload()).encode()[:-1],
    "text": b'"push"',
    "list": b"[]",
    "null": b"null",
    "number": b"1" * 5000,
    "nested lists": b"[" * 60_000,
    "nested objects": b'{"repository":' * 4000,
    "nothing in it": b"{}",
    "no repository": json.dumps({"push_data": {"tag": "1"}}).encode(),
    "no tag": json.dumps({"repository": {"repo_name": APP}, "push_data": {}}).encode(),
    "wrong types": json.dumps({"repository": {"repo_name": [APP]}, "push_data": {"tag": 1}}).encode(),
    "text for objects": json.dumps({"repository": "app", "push_data": "1"}).encode(),
    "null tag": json.dumps(payload(tag=None)).encode(),
    "a digest": json.dumps(payload(tag="sha256:" + "0" * 64)).encode(),
    "a glob": json.dumps(payload(tag="*")).encode(),
    "globs": json.dumps(payload("*/*")).encode(),
    "a path": json.dumps(payload("../../etc/passwd")).encode(),
    "lone surrogate": json.dumps(payload("library/\ud800")).encode(),
}


@pytest.mark.parametrize("address", ADDRESSES)
async def test_bad_bodies(hub, mirror, address, quiet, log):
    """What is not a push is a mistake of the sender's: 400, one line in the log, and nothing changes."""
    for count, (what, body) in enumerate(BAD.items(), 1):
        status, _ = await ask(mirror, address, data=body)
        assert status == 400, what
        assert len([event for event in log if event["event"] == "audit"]) == count, what
    assert await untouched(hub, mirror)
    quiet()


async def test_another_registry_cannot_be_named(hub, mirror):
    """Docker Hub speaks for its own repositories only: what looks like another registry is a name of Docker Hub's."""
    assert await ask(mirror, json=payload("ghcr.io/owner/app")) == (202, {"accepted": False})
    assert parse_push(json.dumps(payload("app", "x")).encode()) == (Repository("docker.io", APP), Tag("x"))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("chunked", [True, False])
async def test_ten_megabytes(hub, mirror, address, chunked):
    """More than 64 KiB is refused, announced or not, whatever comes behind it."""
    port = mirror.port if address == "registry" else mirror.admin_port
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {10 << 20}"
    async with Wire(port) as wire:
        await wire.send(f"POST {HOOK} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        if chunked:
            await wire.send(b"18000\r\n" + b"[" * 0x18000 + b"\r\n")
        assert (await wire.reply()).status == 413
    assert (await ask(mirror, address, data=io.BytesIO(b" " * (10 << 20))))[0] == 413
    assert await untouched(hub, mirror)
    assert (await ask(mirror, address, json=payload()))[0] == 202


async def test_the_most_that_is_taken(mirror):
    """64 KiB are taken, and not a byte more."""
    body = json.dumps(payload()).encode()
    assert (await ask(mirror, data=body.ljust(64 << 10)))[0] == 202
    assert (await ask(mirror, data=body.ljust((64 << 10) + 1)))[0] == 413


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_slow_body(hub, mirror, address, monkeypatch):
    """A body that is not there in time is not waited for."""
    monkeypatch.setattr("mirror.admin.json_body._BODY_TIMEOUT_S", 0.2)
    port = mirror.port if address == "registry" else mirror.admin_port
    async with Wire(port) as wire:
        await wire.send(f"POST {HOOK} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert (await wire.reply()).status == 408
    assert await untouched(hub, mirror)


async def test_a_body_that_is_cut(hub, mirror, quiet):
    """A sender that leaves in the middle leaves nothing behind."""
    async with Wire(mirror.port) as wire:
        await wire.send(f"POST {HOOK} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    await eventually(lambda: not mirror.in_progress)
    assert await untouched(hub, mirror)
    quiet()


async def test_the_secret_is_never_logged(hub, mirror, log, caplog):
    """Whatever is asked with it, at whichever address, at every level."""
    caplog.set_level(logging.DEBUG)
    hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    for address in ADDRESSES:
        for path in (HOOK, HOOK + "?x=1", HOOK + "/", f"/{HOOK}", f"/v2{HOOK}", f"/v2/{APP}{HOOK}"):
            for method in ("POST", "GET"):
                for data in (json.dumps(payload()).encode(), b"garbage"):
                    await ask(mirror, address, path, method, data=data)
    assert [event for event in log if event["event"] == "audit"]
    for secret in (SECRET, QUOTED, "0123456789"):
        assert secret not in str(log) + caplog.text
