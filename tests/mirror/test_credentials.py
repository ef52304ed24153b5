"""Credentials: used where they were configured for, not tried again and again when refused, and never left away silently."""

import asyncio
import base64
from dataclasses import dataclass, field

import pytest

from tests.fakehub import Fault, NoHeaders, Rule, Status
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.slow_files import SlowFile
from tests.support.waiting import LIMIT, eventually

PASSWORD = "correct-horse-battery"


@pytest.fixture
def settled(hub, tmp_path, monkeypatch):
    """Makes mirrors with an account at the hub."""

    def make(**more):
        password = tmp_path / "password"
        password.write_text(PASSWORD)
        hub.users = {"robot": PASSWORD}
        entry = {
            "upstreams": [hub.url],
            "token_hosts": [hub.token_host],
            "username": "robot",
            "password_file": str(password),
            **more,
        }
        mirror = MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry})
        mirror.password = password
        return mirror

    return make


async def ok(mirror):
    return await mirror.metric("upstream_credentials_ok", registry="docker.io")


async def ready(mirror):
    """Status of /readyz, and what its body says of the credentials."""
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/readyz") as response:
        body = await response.json()
    assert body["ready"] == (response.status == 200)
    return response.status, body["credentials"]


async def until_ready(mirror):
    """Wait until /readyz has turned green, without a word to the mirror's clients or upstreams."""
    await eventually(lambda: ready(mirror), holds=lambda answer: answer[0] == 200)


@pytest.fixture
def restless(monkeypatch):
    """Logins that were refused are tried again after fractions of a second."""
    for name, seconds in (("FIRST_PAUSE_S", 0.05), ("MAX_PAUSE_S", 0.05), ("_POLL_INTERVAL_S", 0.01)):
        monkeypatch.setattr(f"mirror.upstream.credential_retry.{name}", seconds)
        if name != "_POLL_INTERVAL_S":
            monkeypatch.setattr(f"mirror.upstream.login.{name}", seconds)


def logins(hub):
    """Requests that carried the account."""
    return [seen for seen in hub.requests if (seen.authorization or "").startswith("Basic ")]


@pytest.mark.parametrize("auth", ["bearer", "basic"])
async def test_refused_login(hub, settled, monkeypatch, auth):
    """A refused login is tried again after one minute, two, four; readiness and metric tell; a right one ends it."""
    async with settled() as mirror:
        clock = Clock(mirror, monkeypatch)
        hub.auth = auth
        image = hub.add_image(APP, "1")
        hub.users = {"robot": "another"}
        for tries, pause in enumerate((60, 120, 240), 1):
            for number in range(20):
                answer = await mirror.get(f"/v2/{APP}{number % 3}/manifests/{number}")
                assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
            assert len(logins(hub)) == tries
            assert await ok(mirror) == 0
            status, problems = await ready(mirror)
            assert (status, list(problems)) == (503, ["docker.io"])
            assert f"{hub.registry_host}: refused" in problems["docker.io"]
            clock.advance(pause)
        hub.users = {"robot": PASSWORD}
        assert (await mirror.get(TAG)).body == image.raw
        assert await ok(mirror) == 1
        assert await ready(mirror) == (200, {})


@pytest.mark.parametrize("auth", ["bearer", "basic"])
async def test_readiness_needs_no_clients_to_recover(hub, settled, restless, auth):
    """A mirror that nobody asks any more, for it is not ready, finds out by itself that the login is taken again."""
    async with settled() as mirror:
        hub.auth = auth
        hub.add_image(APP, "1")
        assert await ready(mirror) == (200, {})
        hub.users = {"robot": "another"}
        assert (await mirror.get(TAG)).status == 503
        await eventually(lambda: len(logins(hub)) >= 3)
        assert ((await ready(mirror))[0], await ok(mirror)) == (503, 0)
        hub.users = {"robot": PASSWORD}
        await until_ready(mirror)
        assert await ok(mirror) == 1
        assert hub.count("GET", "manifest", status=200) == 0


async def test_a_new_password_makes_ready(hub, settled, monkeypatch):
    """Other credentials than the refused ones are not refused; nobody has to ask for something first."""
    monkeypatch.setattr("mirror.upstream.credential_retry._POLL_INTERVAL_S", 0.01)
    async with settled() as mirror:
        hub.add_image(APP, "1")
        hub.users = {"robot": "another"}
        assert (await mirror.get(TAG)).status == 503
        mirror.password.touch()
        for _ in range(20):
            assert (await ready(mirror))[0] == 503
            await asyncio.sleep(0.01)
        mirror.password.write_text("another")
        await until_ready(mirror)
        assert (len(logins(hub)), await ok(mirror)) == (1, 1)
        assert (await mirror.get(TAG)).status == 200


async def test_readiness_while_the_token_host_is_out_of_order(hub, settled, restless):
    """What is neither a yes nor a no to the credentials leaves them refused, and is not asked for without a pause."""
    async with settled() as mirror:
        hub.add_image(APP, "1")
        hub.users = {"robot": "another"}
        assert (await mirror.get(TAG)).status == 503
        hub.users = {"robot": PASSWORD}
        entry = hub.script(Rule(kind="token", times=None), Status(503))
        await hub.wait_for(3, kind="token", status=503)
        assert (await ready(mirror))[0] == 503
        entry.remove()
        await until_ready(mirror)


async def test_reload_without_the_account(hub, settled):
    """An account that is no longer configured is refused no longer, and has no metric."""
    async with settled() as mirror:
        hub.add_image(APP, "1")
        hub.users = {"robot": "another"}
        assert (await mirror.get(TAG)).status == 503
        assert ("registry_mirror_upstream_credentials_ok", 0) in [
            (n.partition("{")[0], v) for n, v in (await mirror.metrics()).items()
        ]
        await mirror.reload(registries={"docker.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host]}})
        assert await ready(mirror) == (200, {})
        assert not [name for name in await mirror.metrics() if "credentials_ok" in name]
        assert (await mirror.get(TAG)).status == 200


async def test_many_at_once_do_not_lock_the_account(hub, settled):
    """However many repositories are asked for at the start, a wrong password is shown once."""
    async with settled() as mirror:
        hub.users = {"robot": "another"}
        held = NoHeaders()
        hub.script(Rule(kind="token"), held)
        asking = [asyncio.create_task(mirror.get(f"/v2/library/app{number}/manifests/1")) for number in range(30)]
        await asyncio.wait_for(held.reached.wait(), LIMIT)
        await hub.wait_for(30, kind="manifest", status=401)
        held.release()
        assert {answer.status for answer in await asyncio.gather(*asking)} == {503}
        assert len(logins(hub)) == 1


@dataclass
class AllTogether(Fault):
    """Nobody is answered before so many have asked."""

    missing: int
    everybody: asyncio.Event = field(default_factory=asyncio.Event)

    async def before(self):
        self.missing -= 1
        if not self.missing:
            self.everybody.set()
        await self.everybody.wait()


async def test_many_at_once_at_a_registry_that_asks_for_the_account(hub, settled):
    """Also where the registry itself is shown the password, it is shown a wrong one once."""
    hub.auth = "basic"
    async with settled() as mirror:
        hub.users = {"robot": "another"}
        # All know at the same time that it asks for the account.
        hub.script(Rule(kind="manifest", times=30, challenge=True), AllTogether(30))
        held = NoHeaders()
        hub.script(Rule(kind="manifest", challenge=True), held)
        asking = [asyncio.create_task(mirror.get(f"/v2/library/app{number}/manifests/1")) for number in range(30)]
        await asyncio.wait_for(held.reached.wait(), LIMIT)
        for _ in range(30):
            assert (await mirror.get("/v2/")).status == 200
        held.release()
        assert {answer.status for answer in await asyncio.gather(*asking)} == {503}
        assert len(logins(hub)) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_answer_that_says_nothing_of_the_account(hub, settled, status):
    """A gateway before the registry accepts no credentials: the next ones are still shown one at a time."""
    hub.auth = "basic"
    hub.add_image(APP, "1")
    async with settled() as mirror:
        hub.script(Rule(kind="manifest", times=None), Status(status))
        await mirror.get(TAG)
        assert {seen.status for seen in logins(hub)} == {status}
        assert not mirror.upstream().login.is_settled


async def test_refused_account_is_kept_for_no_repository(hub, settled):
    """A registry that asks for the account itself is not shown it again for each repository that it was used for."""
    hub.auth = "basic"
    repositories = [f"{APP}{number}" for number in range(3)]
    for repository in repositories:
        for tag in "12":
            hub.add_image(repository, tag)
    async with settled() as mirror:
        for repository in repositories:
            assert (await mirror.get(f"/v2/{repository}/manifests/1")).status == 200
        hub.users = {"robot": "another"}
        hub.reset_counters()
        for repository in repositories:
            assert (await mirror.get(f"/v2/{repository}/manifests/2")).status == 503
        assert len(logins(hub)) == 1
        mirror.password.write_text("another")
        for repository in repositories:
            assert (await mirror.get(f"/v2/{repository}/manifests/2")).status == 200
        # Another password is used at once.
        hub.users = {"robot": PASSWORD}
        mirror.password.write_text(PASSWORD)
        hub.reset_counters()
        for repository in repositories:
            hub.add_image(repository, "3")
            assert (await mirror.get(f"/v2/{repository}/manifests/3")).status == 200
        assert 401 not in {seen.status for seen in logins(hub)}


async def test_right_password_is_awaited_only_once(hub, settled):
    """As soon as one of those who wait for their turn at the start has been let in, all others ask for their tokens at once."""
    for number in range(10):
        hub.add_image(f"library/app{number}", "1")
    async with settled() as mirror:
        held = NoHeaders()
        hub.script(Rule(kind="token"), held)
        hub.script(Rule(kind="token", times=None), AllTogether(9))
        asking = [asyncio.create_task(mirror.get(f"/v2/library/app{number}/manifests/1")) for number in range(10)]
        await asyncio.wait_for(held.reached.wait(), LIMIT)
        await hub.wait_for(10, kind="manifest", status=401)
        held.release()
        async with asyncio.timeout(LIMIT):
            assert {answer.status for answer in await asyncio.gather(*asking)} == {200}


async def test_stale_with_refused_credentials(hub, settled, monkeypatch):
    """With a refused login what is held is served for a day, and no longer: an account that was closed stays closed."""
    async with settled() as mirror:
        clock = Clock(mirror, monkeypatch)
        image = hub.add_image(APP, "1")
        for path in (TAG, *(f"/v2/{APP}/blobs/{blob.digest}" for blob in (image.config, *image.layers))):
            assert (await mirror.get(path)).status == 200
        await mirror.idle()
        hub.users = {"robot": "another"}
        hub.advance(400)
        clock.advance(86_000)
        answer = await mirror.get(TAG)
        assert answer.cache == "STALE"
        assert answer.headers["Warning"] == """110 - "upstream refuses the mirror's credentials (credentials)\""""
        assert await mirror.metric("stale_served_total", reason="credentials") == 1
        clock.advance(500)
        assert (await mirror.get(TAG)).status == 503


@pytest.mark.parametrize("auth", ["bearer", "basic"])
async def test_never_silently_anonymous(hub, settled, auth):
    """Without being told so, a mirror does not go on anonymously with a wrong password or without its file."""
    async with settled() as mirror:
        hub.auth = auth
        hub.add_image(APP, "1")
        mirror.password.unlink()
        assert (await mirror.get(TAG)).status == 503
        assert await ok(mirror) == 0
        status, problems = await ready(mirror)
        assert (status, "cannot be read" in problems["docker.io"]) == (503, True)
        assert hub.count(kind="token") == 0


async def test_anonymous_if_told_so(hub, settled):
    """With `anonymous_fallback` what is public is pulled without the account, what is private is not; the metric is red."""
    async with settled(anonymous_fallback=True) as mirror:
        image = hub.add_image(APP, "1")
        hub.add_image("library/secret", "1")
        hub.private("library/secret", ["robot"])
        hub.users = {"robot": "another"}
        assert (await mirror.get(TAG)).body == image.raw
        assert (await mirror.get("/v2/library/secret/manifests/1")).status == 404
        assert await ok(mirror) == 0
        status, problems = await ready(mirror)
        assert (status, "go on without the account" in problems["docker.io"]) == (200, True)
        assert len(logins(hub)) == 1


async def test_what_is_said_of_a_fallback_ends_by_itself(hub, settled, restless):
    """A mirror that goes on without its account finds out, too, that there is another password."""
    async with settled(anonymous_fallback=True) as mirror:
        hub.add_image(APP, "1")
        hub.users = {"robot": "another"}
        assert (await mirror.get(TAG)).status == 200
        assert ((await ready(mirror))[0], await ok(mirror)) == (200, 0)
        mirror.password.write_text("another")
        await eventually(lambda: ok(mirror), holds=lambda seen: seen == 1)
        assert await ready(mirror) == (200, {})


async def test_forbidden_scope_is_an_answer(hub, settled):
    """A token host that answers 403 to a scope but takes the account denies the repository: others are pulled as ever."""
    async with settled() as mirror:
        image = hub.add_image(APP, "1")
        hub.script(Rule(kind="token"), Status(403))
        assert (await mirror.get("/v2/library/secret/manifests/1")).code() == "NAME_UNKNOWN"
        assert (await mirror.get(TAG)).body == image.raw
        assert await ok(mirror) == 1


async def test_a_login_refused_by_403(hub, settled, monkeypatch):
    """A token host that answers 403 to the account itself, as GitHub's does, refuses it: it is not asked again and again."""
    async with settled() as mirror:
        clock = Clock(mirror, monkeypatch)
        image = hub.add_image(APP, "1")
        entry = hub.script(Rule(kind="token", times=None), Status(403))
        for number in range(10):
            answer = await mirror.get(f"/v2/{APP}{number % 3}/manifests/1")
            assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
            assert "password_file" in answer.body.decode()
        assert ["scope" in seen.query for seen in hub.find(kind="token")] == [True, False]
        assert ((await ready(mirror))[0], await ok(mirror)) == (503, 0)
        entry.remove()
        clock.advance(60)
        assert (await mirror.get(TAG)).body == image.raw
        assert ((await ready(mirror))[0], await ok(mirror)) == (200, 1)


async def test_public_images_with_a_login_refused_by_403(hub, settled):
    """With `anonymous_fallback`, what is public is pulled although the token host answers 403 to the account."""
    async with settled(anonymous_fallback=True) as mirror:
        image = hub.add_image(APP, "1")
        hub.script(Rule(kind="token", times=2), Status(403))
        assert (await mirror.get(TAG)).body == image.raw
        assert [seen.authorization is None for seen in hub.find(kind="token")] == [False, False, True]


async def test_proxy(hub, settled):
    """With a proxy everything goes through it: registry, tokens and content; what is secret goes to whom it went before."""
    targets = []

    async def forward(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, version = head.split("\r\n", 1)[0].split(" ")
        targets.append(target)
        host, _, path = target.removeprefix("http://").partition("/")
        address, _, port = host.partition(":")
        inner, outer = await asyncio.open_connection(address, int(port))
        rest = head.split("\r\n", 1)[1].replace("Connection: keep-alive", "Connection: close")
        outer.write(f"{method} /{path} {version}\r\nConnection: close\r\n{rest}".encode("latin-1"))
        while block := await inner.read(65536):
            writer.write(block)
        for stream in (outer, writer):
            stream.close()

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with server, settled(proxy=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as mirror:
        image = hub.add_image(APP, "1")
        blob = image.layers[0]
        assert (await mirror.get(TAG)).body == image.raw
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    hosts = {target.removeprefix("http://").partition("/")[0] for target in targets}
    assert hosts == {hub.registry_host, hub.token_host, hub.cdn_host}
    assert len(targets) == len(hub.requests)
    basic = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
    assert {seen.host for seen in logins(hub)} == {"token"}
    assert {seen.authorization for seen in hub.find(kind="token")} == {basic}


# ---- what upstream has deleted


@pytest.mark.parametrize("keep", [True, False])
async def test_keep_deleted(hub, tmp_path, monkeypatch, keep):
    """With `keep_deleted` upstream's 404 does not take away a tag that is held, however old; without it, it does."""
    entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "keep_deleted": keep}
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
        clock = Clock(mirror, monkeypatch)
        image = hub.add_image(APP, "1")
        for path in (TAG, *(f"/v2/{APP}/blobs/{blob.digest}" for blob in (image.config, *image.layers))):
            assert (await mirror.get(path)).status == 200
        await mirror.idle()
        hub.delete_tag(APP, "1")
        clock.advance(365 * 86400)
        hub.reset_counters()
        answers = [await mirror.get(TAG) for _ in range(3)]
        if keep:
            assert {(answer.status, answer.cache, answer.body) for answer in answers} == {(200, "STALE", image.raw)}
            warning = '110 - "upstream has deleted it, and this mirror keeps it (deleted)"'
            assert {answer.headers["Warning"] for answer in answers} == {warning}
            assert await mirror.metric("stale_served_total", reason="deleted") == 3
        else:
            assert {(answer.status, answer.code()) for answer in answers} == {(404, "MANIFEST_UNKNOWN")}
        assert hub.count("HEAD", "manifest", status=404) == 1


async def test_keep_deleted_is_not_keep_denied(hub, tmp_path, monkeypatch):
    """What upstream denies is not kept by `keep_deleted`, nor while its no is remembered."""
    entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "keep_deleted": True}
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
        clock = Clock(mirror, monkeypatch)
        image = hub.add_image(APP, "1")
        for path in (TAG, *(f"/v2/{APP}/blobs/{blob.digest}" for blob in (image.config, *image.layers))):
            assert (await mirror.get(path)).status == 200
        await mirror.idle()
        clock.advance(61)
        hub.private(APP, ["somebody"])
        answers = [await mirror.get(TAG) for _ in range(3)]
        assert {(answer.status, answer.code()) for answer in answers} == {(404, "NAME_UNKNOWN")}


async def test_slow_password_file(hub, settled):
    """While the disk keeps the password waiting, everything else is answered."""
    async with settled() as mirror:
        image = hub.add_image(APP, "1")
        with SlowFile(mirror.password) as file:
            pull = asyncio.create_task(mirror.get(TAG))
            await asyncio.to_thread(file.opened.wait, LIMIT)
            assert (await mirror.get("/v2/")).status == 200
            file.release()
        assert not file.gave_up
        assert (await pull).body == image.raw


async def test_password_file_that_is_being_written(hub, settled):
    """An empty file is no password: it is not shown to anybody."""
    async with settled() as mirror:
        image = hub.add_image(APP, "1")
        mirror.password.write_text("\n")
        assert (await mirror.get(TAG)).status == 503
        assert "is empty" in (await ready(mirror))[1]["docker.io"]
        assert not logins(hub)
        mirror.password.write_text(PASSWORD)
        assert (await mirror.get(TAG)).body == image.raw
