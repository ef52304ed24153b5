"""Who may use the registry address, and how much of it, end to end."""

import asyncio
import base64
import contextlib
import json

import aiohttp
import bcrypt
import pytest

from mirror.errors import ConfigurationError
from tests.fakehub import Rule
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import ABSENT
from tests.support.waiting import LIMIT, eventually
from tests.support.wire import Wire, ask, request

PING = request("/v2/")
KEPT = b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n"
EVERYTHING = ["/v2/", "/v2", "/v2/_catalog", "/v2/library/app/manifests/1", f"/v2/library/app/blobs/{ABSENT}", "/nothing"]


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ALICE = {"Authorization": basic("alice", "right")}
WRONG = {
    "password": basic("alice", "wrong"),
    "user": basic("bob", "right"),
    "empty": "",
    "no pair": "Basic YWxpY2U=",
    "no base64": "Basic %%%",
    "token": "Bearer eyJhbGciOi",
    "other scheme": "Digest username=alice",
}


@pytest.fixture
def htpasswd(tmp_path):
    """A file with one user."""
    path = tmp_path / "htpasswd"
    write_htpasswd(path, "right")
    return path


def write_htpasswd(path, password):
    new = path.with_suffix(".new")
    new.write_text(f"alice:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n")
    new.replace(path)


@contextlib.asynccontextmanager
async def from_address(mirror, address):
    """Asks the mirror from another address of this host."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session:
        mine, mirror.session = mirror.session, session
        try:
            yield
        finally:
            mirror.session = mine


# ---- networks


async def test_networks(hub, tmp_path):
    """Only clients of the networks are served, whatever a proxy's header says; upstream hears nothing of the others."""
    image = hub.add_image("library/app", "1")
    async with MirrorUnderTest(hub, tmp_path / "store", access={"networks": ["127.0.0.2", "10.0.0.0/8"]}) as mirror:
        for path in EVERYTHING:
            answer = await mirror.get(path, headers={"X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1"})
            assert (answer.status, answer.code()) == (403, "DENIED")
        assert sum(hub.accepted.values()) == 0
        assert await mirror.metric("refused_total", reason="network") == len(EVERYTHING)
        async with from_address(mirror, "127.0.0.2"):
            assert (await mirror.get("/v2/library/app/manifests/1")).body == image.raw


async def test_changed_networks_count_for_those_connected(mirror):
    """A client whose address is taken off the list is refused over the connection that it has, too."""
    async with Wire(mirror.port) as wire:
        await wire.send(KEPT)
        assert (await wire.reply()).status == 200
        await mirror.reload(access={"networks": ["10.0.0.0/8"]})
        await wire.send(KEPT)
        assert (await wire.reply()).status == 403
        assert await wire.ended() == b""
    await mirror.reload(access={"networks": []})
    assert (await ask(mirror.port, PING)).status == 200


async def test_refused_and_silent(mirror, monkeypatch):
    """A client that is refused and asks nothing does not keep its connection."""
    monkeypatch.setattr("mirror.listener.server._REFUSED_TIMEOUT_S", 0.1)
    await mirror.reload(access={"networks": ["10.0.0.0/8"]})
    async with Wire(mirror.port) as wire:
        assert await wire.ended() == b""


# ---- limits


@contextlib.asynccontextmanager
async def connected(mirror, count):
    """So many connections from 127.0.0.1, each of which has been served and is kept."""
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(mirror.port)) for _ in range(count)]
        for wire in wires:
            await wire.send(KEPT)
            assert (await wire.reply()).status == 200
        yield wires


async def until_served(mirror):
    """Wait until a new connection is served again."""
    await eventually(lambda: ask(mirror.port, PING), holds=lambda answer: answer.status == 200)


async def test_connections_of_one_address(hub, tmp_path):
    """One address with all its connections is told 429; others are served, and it is, too, when one of them ends."""
    async with MirrorUnderTest(hub, tmp_path / "store", limits={"connections_per_address": 3}) as mirror:
        async with connected(mirror, 3) as wires:
            async with Wire(mirror.port) as more:
                await more.send(KEPT)
                reply = await more.reply()
                assert (reply.status, reply.error()["code"]) == (429, "TOOMANYREQUESTS")
                assert int(reply.headers["retry-after"]) > 0
                assert await more.ended() == b""
            async with from_address(mirror, "127.0.0.2"):
                assert (await mirror.get("/v2/")).status == 200
            await wires[1].send(KEPT)
            assert (await wires[1].reply()).status == 200
            wires[0].writer.close()
            await until_served(mirror)
        assert await mirror.metric("refused_total", reason="connections") >= 1


async def test_connections_in_all(hub, tmp_path):
    """A mirror that has all its connections tells everybody 503, and serves those that it has."""
    limits = {"connections": 3, "connections_per_address": 0}
    async with MirrorUnderTest(hub, tmp_path / "store", limits=limits) as mirror:
        async with connected(mirror, 3) as wires:
            for address in ("127.0.0.2", "127.0.0.3"):
                async with from_address(mirror, address):
                    answer = await mirror.get("/v2/")
                assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
                assert int(answer.headers["Retry-After"]) > 0
            await wires[2].send(KEPT)
            assert (await wires[2].reply()).status == 200
        await until_served(mirror)


async def test_many_refused_connections_are_cut(hub, tmp_path):
    """Those who are told why they are refused are few; the others' connections end at once, and nothing of them stays."""
    async with MirrorUnderTest(hub, tmp_path / "store", access={"networks": ["10.0.0.0/8"]}) as mirror:
        async with contextlib.AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(Wire(mirror.port)) for _ in range(30)]
            for wire in wires[16:]:
                assert await wire.ended() == b""
            await wires[0].send(PING)
            assert (await wires[0].reply()).status == 403
        await eventually(lambda: not mirror.peers)
        assert mirror.client_connections == (0, 0)


async def test_requests_of_one_address(hub, tmp_path):
    """One address with all its requests under way is told 429; others are served, and it is, too, when one has ended."""
    image = hub.add_image("library/app", "1", layers=[b"x" * 100_000])
    gate = hub.gate(Rule(kind="blob"), after=1000)
    blob = f"/v2/library/app/blobs/{image.layers[0].digest}"
    async with MirrorUnderTest(hub, tmp_path / "store", limits={"requests_per_address": 2}) as mirror:
        slow = [asyncio.create_task(mirror.get(blob)) for _ in range(2)]
        await eventually(lambda: mirror.in_progress >= 2)
        answer = await mirror.get("/v2/")
        assert (answer.status, answer.code()) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["Retry-After"]) > 0
        async with from_address(mirror, "127.0.0.2"):
            assert (await mirror.get("/v2/")).status == 200
        gate.release()
        assert [(await task).body for task in slow] == [image.layers[0].data] * 2
        assert (await mirror.get("/v2/")).status == 200
        assert await mirror.metric("refused_total", reason="requests") == 1


async def test_a_body_is_not_waited_for(hub, mirror):
    """A GET that announces a body which never comes is answered at once, and its connection does not stay."""
    async with Wire(mirror.port) as wire:
        await wire.send(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\nContent-Length: 1000000000\r\n\r\nabc")
        assert (await wire.reply()).status == 200


# ---- users


@pytest.mark.parametrize("path", EVERYTHING)
async def test_login_is_wanted(hub, tmp_path, htpasswd, path):
    """Without `anonymous`, everything wants credentials, and says so in the way that clients understand."""
    hub.add_image("library/app", "1")
    async with MirrorUnderTest(hub, tmp_path / "store", access={"htpasswd_file": htpasswd, "anonymous": False}) as mirror:
        for method in ("GET", "HEAD", "POST"):
            answer = await mirror.get(path, method)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry-mirror"'
            if method != "HEAD":
                assert answer.code() == "UNAUTHORIZED"
        assert sum(hub.accepted.values()) == 0
        assert (await mirror.get(path, headers=ALICE)).status != 401


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
async def test_wrong_credentials(hub, tmp_path, htpasswd, header, anonymous):
    """What says who it is and is not is 401, whether or not clients may come without saying so; held content, too."""
    image = hub.add_image("library/app", "1")
    path = "/v2/library/app/manifests/1"
    access = {"htpasswd_file": htpasswd, "anonymous": anonymous}
    async with MirrorUnderTest(hub, tmp_path / "store", access=access) as mirror:
        for _ in range(2):
            assert (await mirror.get(path, headers=ALICE)).body == image.raw
            answer = await mirror.get(path, headers={"Authorization": header})
            assert (answer.status, answer.code()) == (401, "UNAUTHORIZED")
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry-mirror"'
        assert await mirror.metric("refused_total", reason="credentials") == 2


async def test_anonymous_beside_users(hub, tmp_path, htpasswd):
    """With `anonymous` the ping is no challenge, and clients with and without credentials are served."""
    image = hub.add_image("library/app", "1")
    async with MirrorUnderTest(hub, tmp_path / "store", access={"htpasswd_file": htpasswd}) as mirror:
        for headers in ({}, ALICE):
            answer = await mirror.get("/v2/", headers=headers)
            assert (answer.status, answer.body) == (200, b"{}")
            assert "WWW-Authenticate" not in answer.headers
            assert (await mirror.get("/v2/library/app/manifests/1", headers=headers)).body == image.raw


async def test_credentials_stay_here(hub, tmp_path, htpasswd, log):
    """What a client says of itself goes neither upstream nor into the log, in whatever form and whether or not it is right."""
    hub.users = {}
    image = hub.add_image("library/app", "1")
    secrets = ["right", "hunter2", basic("alice", "right")[6:], basic("alice", "hunter2")[6:]]
    access = {"htpasswd_file": htpasswd}
    async with MirrorUnderTest(hub, tmp_path / "store", access=access, log={"level": "debug"}) as mirror:
        for authorization in (basic("alice", "right"), basic("alice", "hunter2"), "Bearer hunter2", f"hunter2\x00{secrets[3]}"):
            for path in ("manifests/1", f"blobs/{image.layers[0].digest}", "tags/list", "manifests/absent", f"blobs/{ABSENT}"):
                with contextlib.suppress(aiohttp.ClientError, ValueError):
                    await mirror.get(f"/v2/library/app/{path}", headers={"Authorization": authorization})
        raw = request("/v2/library/app/manifests/1", f"Authorization: Basic {secrets[3]}\x01")
        assert (await ask(mirror.port, raw)).status == 400
        await mirror.idle()
        metrics = json.dumps(await mirror.metrics())
    assert hub.requests
    for seen in hub.requests:
        given = seen.headers.get("Authorization", "")
        assert not given.startswith("Basic")
        assert not any(secret in str(dict(seen.headers)) for secret in secrets)
    for secret in secrets:
        assert secret not in metrics
        assert not any(secret in repr(event) for event in log)


async def test_changed_passwords_count_at_once(hub, tmp_path, htpasswd, monkeypatch, log):
    """A new file of users is followed without a reload: what was right is wrong; a damaged one changes nothing and is told."""
    monkeypatch.setattr("mirror.listener.registry_listener._POLL_INTERVAL_S", 0.02)

    async def until(event, count):
        await eventually(lambda: sum(entry["event"] == event for entry in log) >= count)

    async def status(password):
        return (await mirror.get("/v2/", headers={"Authorization": basic("alice", password)})).status

    access = {"htpasswd_file": htpasswd, "anonymous": False}
    async with MirrorUnderTest(hub, tmp_path / "store", access=access) as mirror:
        assert (await status("right"), await status("new")) == (200, 401)
        write_htpasswd(htpasswd, "new")
        await until("renewed_files_in_use", 1)
        assert (await status("right"), await status("new")) == (401, 200)
        htpasswd.write_text("alice:plain\n")
        await until("renewed_files_refused", 1)
        assert (await status("plain"), await status("new")) == (401, 200)
        htpasswd.unlink()
        await until("renewed_files_refused", 2)
        assert await status("new") == 200
        write_htpasswd(htpasswd, "right")
        await until("renewed_files_in_use", 2)
        assert (await status("right"), await status("new")) == (200, 401)


@pytest.mark.parametrize("damage", ["vanished", "plain password", "no user", "no text"])
async def test_a_damaged_file_of_users_can_be_seen(hub, tmp_path, htpasswd, monkeypatch, log, damage):
    """While the file of users is of no use, the old users pass, /readyz and a metric tell, and the log does again and again."""
    monkeypatch.setattr("mirror.listener.registry_listener._POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr("mirror.listener.registry_listener._RETRY_INTERVAL_S", 0.05)

    async def state():
        async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/readyz") as response:
            return response.status, (await response.json())["files"], await mirror.metric("renewed_files_ok")

    async def until(problems):
        await eventually(state, holds=lambda seen: bool(seen[1]) == problems)

    access = {"htpasswd_file": htpasswd, "anonymous": False}
    async with MirrorUnderTest(hub, tmp_path / "store", access=access) as mirror:
        assert await state() == (200, {}, 1)
        if damage == "vanished":
            htpasswd.unlink()
        else:
            htpasswd.write_bytes({"plain password": b"mallory:hunter2", "no user": b"", "no text": b"\xff"}[damage])
        await until(True)
        status, problems, metric = await state()
        assert (status, list(problems), metric) == (200, ["access.htpasswd_file"], 0)
        assert not [word for word in ("mallory", "hunter2") if word in str(problems)]
        await eventually(lambda: sum(entry["event"] == "renewed_files_refused" for entry in log) >= 3)
        assert (await mirror.get("/v2/", headers=ALICE)).status == 200
        for headers in ({}, {"Authorization": WRONG["password"]}, {"Authorization": basic("mallory", "hunter2")}):
            assert (await mirror.get("/v2/", headers=headers)).status == 401
        write_htpasswd(htpasswd, "new")
        await until(False)
        assert await state() == (200, {}, 1)
        assert (await mirror.get("/v2/", headers={"Authorization": basic("alice", "new")})).status == 200
        assert (await mirror.get("/v2/", headers=ALICE)).status == 401


async def test_reload_follows_the_users(hub, tmp_path, htpasswd, mirror):
    """A reload brings users in and takes them away; with a file that is of no use it is refused as a whole."""
    assert (await mirror.get("/v2/", headers={"Authorization": WRONG["password"]})).status == 200
    await mirror.reload(access={"htpasswd_file": htpasswd, "anonymous": False})
    assert (await mirror.get("/v2/")).status == 401
    assert (await mirror.get("/v2/", headers=ALICE)).status == 200
    await mirror.reload(access={"htpasswd_file": None, "anonymous": True})
    assert (await mirror.get("/v2/")).status == 200


async def test_guessing_does_not_stop_others(hub, tmp_path, htpasswd, monkeypatch):
    """While one address has passwords checked, its further guesses are 429, and who is known already is served at once."""
    import threading

    go_on, real = threading.Event(), bcrypt.checkpw
    access = {"htpasswd_file": htpasswd, "anonymous": False}
    async with MirrorUnderTest(hub, tmp_path / "store", access=access) as mirror:
        assert (await mirror.get("/v2/", headers=ALICE)).status == 200
        monkeypatch.setattr(bcrypt, "checkpw", lambda *given: go_on.wait(LIMIT) and real(*given))
        guesses = [
            asyncio.create_task(mirror.get("/v2/", headers={"Authorization": basic("alice", f"guess {n}")})) for n in range(12)
        ]
        await eventually(lambda: sum(task.done() for task in guesses) >= 8)
        refused = [task.result() for task in guesses if task.done()]
        assert {answer.status for answer in refused} == {429}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
        assert (await mirror.get("/v2/", headers=ALICE)).status == 200
        go_on.set()
        assert sorted(answer.status for answer in await asyncio.gather(*guesses)) == [401] * 4 + [429] * 8


async def test_one_clients_many_requests_are_one_check(hub, tmp_path, htpasswd, monkeypatch):
    """A client that begins with many requests at a time is no guesser: its credentials are checked once, for all of them."""
    asked, real = [], bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *given: (asked.append(given), real(*given))[1])
    access = {"htpasswd_file": htpasswd, "anonymous": False}
    async with MirrorUnderTest(hub, tmp_path / "store", access=access) as mirror:
        answers = await asyncio.gather(*(mirror.get("/v2/", headers=ALICE) for _ in range(30)))
    assert {answer.status for answer in answers} == {200}
    assert len(asked) == 1


def test_nobody_could_pass(tmp_path):
    """A configuration that lets nobody in is a mistake."""
    from mirror.config.model import load

    path = tmp_path / "mirror.yaml"
    path.write_text("access: {anonymous: false}")
    with pytest.raises(ConfigurationError, match=r"^access: no client could pass"):
        load(path)
