"""The token dance, and where credentials go."""

import asyncio
import base64

import pytest

from tests.fakehub import (
    Disconnect,
    ForeignRealm,
    Headers,
    Html,
    HugeBody,
    NoHeaders,
    RateLimited,
    Rule,
    Status,
)
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, manifest_path

TOKENS = Rule(kind="token", times=None)
PASSWORD = "correct-horse-battery"


def tokens(mirror):
    """What keeps the tokens of the mirror's one upstream."""
    return mirror.upstream().route.tokens


@pytest.fixture
async def known(hub, tmp_path):
    """A mirror with credentials."""
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    hub.users = {"robot": PASSWORD}
    entry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "username": "robot",
        "password_file": str(password),
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
        mirror.password = password
        yield mirror


async def test_one_token_for_many(hub, mirror):
    """However many need a token for one scope at once, one is fetched."""
    for number in range(50):
        hub.add_image(APP, str(number))
    held = NoHeaders()
    hub.script(Rule(kind="token"), held)
    asking = [asyncio.create_task(mirror.get(f"/v2/{APP}/manifests/{number}")) for number in range(50)]
    await hub.wait_for(30, kind="manifest", status=401)
    held.release()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
    assert hub.count(kind="token") == 1


async def test_one_token_per_repository(hub, mirror):
    """A token is good for its repository, and no other is asked with it."""
    for name in ("library/one", "library/two"):
        hub.add_image(name, "1")
        hub.add_image(name, "2")
        for tag in ("1", "2"):
            assert (await mirror.get(f"/v2/{name}/manifests/{tag}")).status == 200
    assert hub.count(kind="token") == 2


async def test_token_is_renewed_before_its_end(hub, mirror):
    """Half a minute before its end a token is not used any more, so that no request fails for it."""
    offset = 0.0
    clock = tokens(mirror).clock
    tokens(mirror).clock = lambda: clock() + offset
    for number in range(3):
        hub.add_image(APP, str(number))
    await mirror.get(f"/v2/{APP}/manifests/0")
    offset = 175
    await mirror.get(f"/v2/{APP}/manifests/1")
    assert hub.count(kind="token") == 1
    offset = 275
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).status == 200
    assert hub.count(kind="token") == 2


async def test_refused_token_is_replaced_once(hub, mirror):
    """A token that upstream does not take any more is replaced, and the request repeated once."""
    hub.add_image(APP, "1")
    hub.add_image(APP, "2")
    await mirror.get(TAG)
    hub.advance(400)
    hub.reset_counters()
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).status == 200
    assert [seen.status for seen in hub.find(kind="manifest")] == [401, 200]
    assert hub.count(kind="token") == 1


async def test_registry_that_always_wants_another_token(hub, mirror):
    """A registry that refuses every token is believed after the second time."""
    hub.add_image(APP, "1")
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{hub.token_host}/token",service="registry.docker.io"'}
    hub.script(Rule(kind="manifest", times=None, challenge=True), Status(401, challenge))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (404, "NAME_UNKNOWN")
    assert hub.count(kind="manifest") == 2
    assert hub.count(kind="token") == 1


BROKEN = [
    pytest.param(Status(500), id="500"),
    pytest.param(Status(503), id="503"),
    pytest.param(Status(404), id="404"),
    pytest.param(Status(302, {"Location": "/elsewhere"}), id="redirect"),
    pytest.param(Html(), id="page"),
    pytest.param(Status(200, body=b"{}"), id="no token"),
    pytest.param(Status(200, body=b"[1]"), id="list"),
    pytest.param(Status(200, body=b'{"token": 5}'), id="number"),
    pytest.param(Status(200, body=b'{"token": ""}'), id="empty"),
    pytest.param(Status(200, body=b'{"token": "a\\nb"}'), id="line break"),
    pytest.param(Status(200, body=b'{"token": "a", "expires_in": "soon"}'), id="lifetime"),
    pytest.param(Status(200, body=b"[" * 100_000), id="nested"),
    pytest.param(HugeBody(2 << 20), id="huge"),
    pytest.param(Disconnect(), id="closed"),
    pytest.param(RateLimited(), id="429"),
]


@pytest.mark.parametrize("fault", BROKEN)
async def test_broken_token_host(hub, mirror, clock, fault):
    """A token host out of order is an outage: 503 for what is not held, STALE for what is, and all is well afterwards."""
    image = hub.add_image(APP, "1")
    entry = hub.script(TOKENS, fault)
    assert (await mirror.get(TAG)).status == 503
    entry.remove()
    clock.advance(31)
    assert (await mirror.get(TAG)).body == image.raw
    for blob in [image.config, *image.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()
    clock.advance(61)
    hub.advance(400)
    hub.script(TOKENS, fault)
    assert (await mirror.get(TAG)).cache == "STALE"


async def test_silent_token_host(hub, impatient):
    """A token host that never answers ends in an answer all the same."""
    hub.add_image(APP, "1")
    hub.script(TOKENS, NoHeaders())
    answer = await impatient.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


@pytest.mark.parametrize("status", [401, 403])
async def test_no_token_for_strangers(hub, mirror, status):
    """A mirror without credentials that gets no token is not granted the repository: an answer, not an outage."""
    hub.add_image(APP, "1")
    hub.script(TOKENS, Status(status))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (404, "NAME_UNKNOWN")


async def test_credentials(hub, known):
    """Credentials go to the token host, and open what is private."""
    image = hub.add_image(APP, "1")
    hub.private(APP, ["robot"])
    assert (await known.get(TAG)).body == image.raw
    basic = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
    assert [seen.authorization for seen in hub.find(kind="token")] == [basic]
    assert basic not in {seen.authorization for seen in hub.requests if seen.host != "token"}


async def test_refused_credentials(hub, known):
    """Wrong credentials are our fault, told as such; the token host is not asked at every request, or the account is locked."""
    hub.add_image(APP, "1")
    hub.add_image("library/other", "1")
    hub.users = {"robot": "another"}
    for path in (TAG, TAG, "/v2/library/other/manifests/1"):
        answer = await known.get(path)
        assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
        assert "password_file" in answer.body.decode()
    assert hub.count(kind="token") == 1


async def test_new_password_counts_at_once(hub, known):
    """A corrected password file is used with the next request."""
    image = hub.add_image(APP, "1")
    hub.users = {"robot": "another"}
    assert (await known.get(TAG)).status == 503
    known.password.write_text("another")
    assert (await known.get(TAG)).body == image.raw


async def test_basic_challenge(hub, known):
    """A registry that wants Basic itself gets the credentials, and its CDN does not."""
    image = hub.add_image(APP, "1")
    hub.auth = "basic"
    assert (await known.get(TAG)).body == image.raw
    blob = image.layers[0]
    assert (await known.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert {seen.authorization for seen in hub.find(host="cdn")} == {None}
    assert hub.count(kind="token") == 0


async def test_basic_challenge_is_answered_ahead(hub, known):
    """Once such a registry has accepted the credentials, no request for another repository meets a 401 first."""
    hub.auth = "basic"
    for repository in (APP, "library/other", "library/third"):
        hub.add_image(repository, "1")
        assert (await known.get(manifest_path("1", repository))).status == 200
    assert [(seen.repository, seen.status) for seen in hub.requests] == [
        (APP, 401),
        (APP, 200),
        ("library/other", 200),
        ("library/third", 200),
    ]


async def test_password_that_changes_behind_a_basic_challenge(hub, known):
    """Credentials that are sent ahead and refused count as refused: they are not sent again with each request."""
    hub.auth = "basic"
    hub.add_image(APP, "1")
    assert (await known.get(TAG)).status == 200
    hub.users = {"robot": "another"}
    hub.reset_counters()
    for number in range(3):
        answer = await known.get(f"/v2/library/other{number}/manifests/1")
        assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    assert len([seen for seen in hub.requests if seen.authorization]) == 1
    known.password.write_text("another")
    hub.add_image("library/other", "1")
    assert (await known.get("/v2/library/other/manifests/1")).status == 200


async def test_basic_challenge_without_credentials(hub, mirror):
    """Without credentials a Basic challenge is a refusal."""
    hub.add_image(APP, "1")
    hub.auth = "basic"
    assert (await mirror.get(TAG)).status == 404


@pytest.mark.parametrize("scheme", ["", "Negotiate", 'Digest realm="x"', "Bearer", 'Bearer realm="nonsense"', ",,,"])
async def test_strange_challenges(hub, known, scheme):
    """A challenge that cannot be answered ends in an answer, and the credentials stay here."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None, challenge=True), Status(401, {"WWW-Authenticate": scheme}))
    assert (await known.get(TAG)).status in (404, 503)
    assert {seen.authorization for seen in hub.requests} == {None}


@pytest.mark.parametrize(
    "realm", ["http://{}/token", "http://robot@{}/token", "//{}/token", "http://{}/token?x=http://127.0.0.3"]
)
async def test_foreign_realm(hub, known, realm):
    """A realm on a host that is neither upstream's own nor configured is not even connected to."""
    hub.add_image(APP, "1")
    visitors = []
    server = await asyncio.start_server(lambda *connection: visitors.append(connection), "127.0.0.4", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        url = realm.format(f"{host}:{port}")
        hub.script(Rule(kind="manifest", times=None, challenge=True), ForeignRealm(url))
        answer = await known.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    assert visitors == []
    assert hub.count(kind="token") == 0


async def test_scope_is_the_challenges(hub, mirror):
    """The token is asked for with the service and the scope that the challenge names."""
    hub.add_image(APP, "1")
    await mirror.get(TAG)
    query = hub.find(kind="token")[0].query
    assert "service=registry.docker.io" in query
    assert f"scope=repository:{APP}:pull" in query.replace("%3A", ":").replace("%2F", "/")


async def test_challenge_without_scope(hub, mirror):
    """Where the challenge names no scope, the repository's own is asked for."""
    image = hub.add_image(APP, "1")
    challenge = f'Bearer realm="http://{hub.token_host}/token",service="registry.docker.io"'
    hub.script(Rule(kind="manifest", challenge=True), Headers({"WWW-Authenticate": challenge}))
    assert (await mirror.get(TAG)).body == image.raw


async def test_refused_credentials_are_tried_again_later(hub, known):
    """After a minute the same password is tried again, for the account may have been unlocked."""
    image = hub.add_image(APP, "1")
    hub.users = {"robot": "another"}
    assert (await known.get(TAG)).status == 503
    hub.users = {"robot": PASSWORD}
    assert (await known.get(TAG)).status == 503
    login = tokens(known).login
    clock = login.clock
    login.clock = lambda: clock() + 61
    assert (await known.get(TAG)).body == image.raw
