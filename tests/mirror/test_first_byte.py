"""What stands between a request and its first byte on a miss: each round trip to upstream, in order."""

import asyncio
import time

import pytest

from mirror.core.digest import Digest
from mirror.errors import NotFound
from mirror.upstream import receiver
from tests.fakehub import Reset, Rule, Status
from tests.mirror.transfers import Transfer
from tests.support.clock import Clock
from tests.support.names import APP, KIB, MIB, TAG, manifest_path
from tests.support.waiting import eventually

OTHER = "library/other"
TOKEN, HEAD, GET = ("GET", "token", "token"), ("HEAD", "registry", "manifest"), ("GET", "registry", "manifest")
REDIRECT, CONTENT = ("GET", "registry", "blob"), ("GET", "cdn", "blob")


def trips(hub):
    """The requests that the hub has answered, in order."""
    return [(seen.method, seen.host, seen.kind) for seen in hub.requests]


def tokens(mirror):
    return mirror.upstream().route.tokens


@pytest.fixture
async def acquainted(hub, mirror):
    """The mirror has asked its registry for something before."""
    hub.add_image(OTHER, "1")
    assert (await mirror.get(f"/v2/{OTHER}/manifests/1")).status == 200
    hub.reset_counters()
    return mirror


async def test_token_comes_first(hub, acquainted):
    """Where the registry is known to require a token, one is fetched before the first request for a repository."""
    hub.add_image(APP, "1")
    assert (await acquainted.head(TAG)).status == 200
    assert trips(hub) == [TOKEN, HEAD]


async def test_one_token_ahead_for_many(hub, acquainted):
    """Requests for one repository share the token that is fetched ahead."""
    image = hub.add_image(APP, "1")
    paths = [f"/v2/{APP}/blobs/{blob.digest}" for blob in [image.config, *image.layers]]
    answers = await asyncio.gather(*[acquainted.get(path) for path in (TAG, *paths)])
    assert {answer.status for answer in answers} == {200}
    assert hub.count(kind="token") == 1
    assert hub.count(status=401) == 0


async def test_repository_that_is_not_granted(hub, acquainted):
    """A registry that refuses a token that was just fetched for what it names is not asked a second time."""
    hub.add_image(APP, "1")
    hub.private(APP, ["robot"])
    assert (await acquainted.head(TAG)).status == 404
    assert trips(hub) == [TOKEN, HEAD]


@pytest.mark.parametrize("fault", [Status(503), Status(403)])
async def test_token_host_that_fails_ahead(hub, acquainted, fault):
    """A repository that requires no token is served although the token host fails; one that does is answered as ever."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="token", times=None), fault)
    hub.auth = "none"
    assert (await acquainted.get(TAG)).body == image.raw
    hub.auth = "bearer"
    hub.add_image("library/third", "1")
    answer = await acquainted.get("/v2/library/third/manifests/1")
    assert answer.status == (503 if fault.status == 503 else 404)


async def test_registry_that_requires_no_token_any_more(hub, acquainted):
    """After a response without a challenge no token is fetched ahead."""
    hub.auth = "none"
    hub.script(Rule(kind="token"), Status(503))
    hub.add_image(APP, "1")
    assert (await acquainted.head(TAG)).status == 200
    hub.add_image("library/third", "1")
    hub.reset_counters()
    assert (await acquainted.head("/v2/library/third/manifests/1")).status == 200
    assert trips(hub) == [HEAD]


async def test_failure_of_all_hosts_is_no_news(hub, acquainted):
    """A registry that fails, when the token host has failed, is not taken for one that requires no token."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="token"), Status(503))
    hub.script(Rule(kind="manifest", challenge=True), Status(503))
    assert (await acquainted.head(TAG)).status == 200
    assert trips(hub) == [TOKEN, HEAD, TOKEN, HEAD]


async def test_unpredictable_scope(hub, mirror):
    """Where a registry names another scope than its repositories' own, its challenge is awaited each time."""
    challenge = f'Bearer realm="http://{hub.token_host}/token",service="registry.docker.io",scope="repository:elsewhere:pull"'
    for name in (OTHER, APP):
        hub.add_image(name, "1")
        hub.script(Rule(kind="manifest", challenge=True), Status(401, {"WWW-Authenticate": challenge}))
        await mirror.head(f"/v2/{name}/manifests/1")
    assert hub.find(kind="manifest", repository=APP)[0].status == 401


async def test_token_in_use_is_renewed(hub, acquainted, monkeypatch):
    """A token that is used late in its life is renewed meanwhile, so that no request waits for one; an unused one is not."""
    offset = 0.0
    clock = tokens(acquainted).clock
    monkeypatch.setattr(tokens(acquainted), "clock", lambda: clock() + offset)
    for tag in "1234":
        hub.add_image(APP, tag, layers=[tag.encode()])
    assert (await acquainted.head(manifest_path("1"))).status == 200
    offset = 100
    assert (await acquainted.head(manifest_path("2"))).status == 200
    assert hub.count(kind="token") == 1
    offset = 200
    hub.reset_counters()
    assert (await acquainted.head(manifest_path("3"))).status == 200
    await eventually(lambda: hub.count(kind="token") == 1)
    await eventually(lambda: not tokens(acquainted)._flights)
    # The first one would have ended by now.
    offset = 400
    hub.advance(200)
    hub.reset_counters()
    assert (await acquainted.head(manifest_path("4"))).status == 200
    assert trips(hub)[0] == HEAD
    assert hub.count(status=401) == 0


async def test_renewal_that_fails_is_tried_once(hub, acquainted, monkeypatch):
    """A token host that is out of order while a token is still good is asked once for a new one, and nobody notices."""
    offset = 0.0
    clock = tokens(acquainted).clock
    monkeypatch.setattr(tokens(acquainted), "clock", lambda: clock() + offset)
    for number in range(5):
        hub.add_image(APP, str(number), layers=[bytes([number])])
    assert (await acquainted.head(manifest_path("0"))).status == 200
    offset = 200
    hub.reset_counters()
    hub.script(Rule(kind="token", times=None), Status(503))
    for number in range(1, 5):
        assert (await acquainted.head(manifest_path(str(number)))).status == 200
    await eventually(lambda: not tokens(acquainted)._flights)
    assert hub.count(kind="token") == 1


# ---- tags


async def test_unknown_tag_is_fetched_at_once(hub, acquainted):
    """The manifest of an unknown tag takes two round trips: the token, and a GET."""
    image = hub.add_image(APP, "1")
    answer = await acquainted.get(TAG)
    assert (answer.body, answer.cache) == (image.raw, "MISS")
    assert trips(hub) == [TOKEN, GET]
    hub.reset_counters()
    assert (await acquainted.get(TAG)).cache == "HIT"
    assert (await acquainted.get(manifest_path(image.digest))).cache == "HIT"
    assert trips(hub) == []


@pytest.mark.parametrize(("left", "expected"), [(None, [GET]), (1000, [GET]), (61, [GET]), (60, [HEAD, GET]), (10, [HEAD, GET])])
async def test_pulls_left_decide(hub, acquainted, left, expected):
    """Where the pull limit leaves few pulls the tag is asked for by HEAD first: another tag may name a held image."""
    hub.ratelimit_limit, hub.ratelimit_remaining = None if left is None else 1000, left or 0
    image = hub.add_image(APP, "1")
    # How many are left the mirror learns from any manifest.
    assert (await acquainted.head(f"/v2/{OTHER}/manifests/unknown")).status == 404
    assert (await acquainted.head(f"/v2/{OTHER}/manifests/{hub.add_image(OTHER, '2').digest}")).status == 200
    hub.reset_counters()
    assert (await acquainted.get(TAG)).body == image.raw
    assert trips(hub) == [TOKEN, *expected]


async def test_rate_limit_near(hub, acquainted, monkeypatch):
    """For an hour after a 429 unknown tags are asked for by HEAD first."""
    clock = Clock(acquainted, monkeypatch)
    hub.script(Rule(kind="manifest"), Status(429))
    assert (await acquainted.get(manifest_path("limited", OTHER))).status == 503
    for minutes, expected in ((30, [HEAD, GET]), (31, [GET])):
        clock.advance(60 * minutes)
        tag = str(minutes)
        hub.add_image(APP, tag, layers=[tag.encode()])
        hub.reset_counters()
        assert (await acquainted.get(manifest_path(tag))).status == 200
        assert [trip for trip in trips(hub) if trip[2] == "manifest"] == expected


async def test_head_costs_no_pull(hub, acquainted):
    """A client's HEAD of an unknown tag stays a HEAD, and its GET by digest is the only pull."""
    image = hub.add_image(APP, "1")
    before = hub.ratelimit_remaining
    head = await acquainted.head(TAG)
    assert (await acquainted.get(manifest_path(head.headers["Docker-Content-Digest"]))).body == image.raw
    assert (await acquainted.get(TAG)).body == image.raw
    assert trips(hub) == [TOKEN, HEAD, GET]
    assert before - hub.ratelimit_remaining == 1


async def test_blob_takes_two_round_trips(hub, acquainted):
    """A blob of a repository that has a token takes the registry's redirect and the content."""
    image = hub.add_image(APP, "1")
    await acquainted.get(TAG)
    hub.reset_counters()
    blob = image.layers[0]
    assert (await acquainted.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert trips(hub) == [REDIRECT, CONTENT]


async def test_beginning_of_a_body_is_short(hub, mirror, monkeypatch):
    """With the head of a response little of its body is received: the first step is sent soon, and many wait in little memory."""
    begun, received = [], receiver._received

    def recorded(response):
        begun.append(len(found := received(response)))
        return found

    monkeypatch.setattr(receiver, "_received", recorded)
    for seed in range(5):
        blob = Transfer(hub, mirror, 2 * MIB, seed)
        assert (await blob.get()).body == blob.data
    assert len(begun) == 5
    assert max(begun) <= 32 * KIB


# ---- redirects


async def far_range(hub, mirror):
    """Read from far ahead of a download that has begun; returns its gate, its client and the blob."""
    blob = Transfer(hub, mirror, 12 * MIB)
    gate, client = await blob.started(MIB // 2)
    hub.clear_script()
    return blob, gate, client


async def test_redirect_is_used_again(hub, mirror):
    """A second request for a blob goes to where the registry has redirected the first one, while that is valid."""
    blob, gate, client = await far_range(hub, mirror)
    hub.reset_counters()
    assert (await blob.get(Range=f"bytes={10 * MIB}-{10 * MIB + 9}")).body == blob.data[10 * MIB : 10 * MIB + 10]
    assert trips(hub) == [CONTENT]
    gate.release()
    assert await client.whole() == blob.data


async def test_redirect_that_has_expired(hub, mirror):
    """Where the target refuses, the registry is asked for another one, and the client notices nothing."""
    blob, gate, client = await far_range(hub, mirror)
    hub.advance(301)
    hub.reset_counters()
    assert (await blob.get(Range=f"bytes={10 * MIB}-{10 * MIB + 9}")).body == blob.data[10 * MIB : 10 * MIB + 10]
    assert trips(hub)[0] == CONTENT
    assert trips(hub)[-2:] == [REDIRECT, CONTENT]
    gate.release()
    assert await client.whole() == blob.data


async def test_redirect_after_a_broken_body(hub, mirror):
    """After a body that broke, the registry chooses anew where the rest comes from."""
    blob = Transfer(hub, mirror, 2 * MIB)
    hub.script(Rule(kind="blob", host="cdn"), Reset(MIB))
    assert (await blob.get()).body == blob.data
    assert [trip for trip in trips(hub) if trip[2] == "blob"][-4:] == [REDIRECT, CONTENT, REDIRECT, CONTENT]


async def test_redirect_is_of_one_repository(hub, mirror):
    """A repository that is not known to grant a blob is asked for it, although another one's redirect is known."""
    blob, gate, client = await far_range(hub, mirror)
    hub.add_image(OTHER, "1")
    assert (await mirror.get(f"/v2/{OTHER}/blobs/{blob.digest}", headers={"Range": "bytes=0-9"})).status == 404
    gate.release()
    assert await client.whole() == blob.data


async def test_redirect_ends_with_the_grant(hub, mirror):
    """After the registry has refused a blob, an earlier redirect to it is not followed any more."""
    digest = Digest.parse(str(hub.add_blob(APP, b"content")))

    async def fetch():
        hub.reset_counters()
        async with mirror.registry().blob(APP, digest, 0, 5):
            pass
        return trips(hub)

    await fetch()
    assert await fetch() == [CONTENT]
    hub.script(Rule(kind="blob", method="HEAD"), Status(404))
    with pytest.raises(NotFound):
        await mirror.registry().head_blob(APP, digest)
    assert await fetch() == [REDIRECT, CONTENT]


# ---- connections


async def test_connections_stay_warm(hub, acquainted, monkeypatch):
    """Connections to the registry, its token host and its CDN are used again after a pause of most of a minute."""
    image = hub.add_image(APP, "1", layers=[b"one", b"two"])
    paths = [f"/v2/{APP}/blobs/{blob.digest}" for blob in image.layers]
    await acquainted.get(paths[0])
    await acquainted.idle()
    before, clock = dict(hub.accepted), time.monotonic
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: clock() + 50)
    assert (await acquainted.get(paths[1])).body == b"two"
    hub.add_image("library/third", "1")
    assert (await acquainted.get("/v2/library/third/manifests/1")).status == 200
    assert hub.accepted == before
