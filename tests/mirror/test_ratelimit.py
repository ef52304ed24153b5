"""The pull limit: spent once per manifest, kept to without being told twice, and never needed to be told at all."""

import asyncio

import pytest

from tests.fakehub import AbuseLimited, NoHeaders, RateLimited, Rule
from tests.mirror.images import pulled
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.waiting import LIMIT, eventually

ALL = Rule(kind="manifest", times=None, challenge=True)
UP = {"registry": "docker.io"}


LIMITS = [
    pytest.param(RateLimited(), 30, id="no time"),
    pytest.param(RateLimited(retry_after=77), 77, id="Retry-After"),
    pytest.param(AbuseLimited(), 30, id="abuse, plain text"),
]


@pytest.mark.parametrize(("limit", "window"), LIMITS)
async def test_cached_tags_keep_coming(hub, mirror, clock, limit, window):
    """After a 429 cached tags are served STALE without a word with upstream, but for one probe per window."""
    image = await pulled(hub, mirror)
    clock.advance(61)
    hub.script(ALL, limit)
    hub.reset_counters()
    for expected in (1, 2):
        for _ in range(50):
            answer = await mirror.get(TAG)
            assert (answer.status, answer.cache, answer.body) == (200, "STALE", image.raw)
        assert hub.count(kind="manifest") == expected
        clock.advance(window)
    assert await mirror.metric("stale_served_total", **UP, reason="rate_limited") == 100


@pytest.mark.parametrize(("limit", "window"), LIMITS)
async def test_unknown_tags_are_refused_at_once(hub, mirror, clock, limit, window):
    """What is not held is refused with the time to wait, and a storm for it costs upstream one request per window."""
    hub.script(ALL, limit)
    for expected, wait in ((1, window), (2, window if limit.headers else 2 * window)):
        answers = [await mirror.get(f"/v2/{APP}/manifests/{number}") for number in range(100)]
        assert {(answer.status, answer.code()) for answer in answers} == {(503, "TOOMANYREQUESTS")}
        assert all(wait - 20 < int(answer.headers["Retry-After"]) <= wait for answer in answers)
        assert hub.count(kind="manifest") == expected
        clock.advance(wait)


async def test_end_of_the_limit(hub, mirror, clock):
    """A probe that is answered ends it."""
    await pulled(hub, mirror)
    clock.advance(61)
    entry = hub.script(ALL, RateLimited())
    assert (await mirror.get(TAG)).cache == "STALE"
    entry.remove()
    assert (await mirror.get(TAG)).cache == "STALE"
    clock.advance(31)
    assert (await mirror.get(TAG)).cache == "REVALIDATED"
    assert (await mirror.get(TAG)).cache == "HIT"


async def test_blobs_are_not_held_back(hub, mirror):
    """A 429 on manifests holds back no blob, and one on blobs no manifest."""
    image = hub.add_image(APP, "1", layers=[b"one", b"two"])
    entry = hub.script(ALL, RateLimited())
    first, other = (f"/v2/{APP}/blobs/{blob.digest}" for blob in image.layers)
    assert (await mirror.get(TAG)).status == 503
    assert (await mirror.get(first)).status == 200
    entry.remove()
    hub.script(Rule(kind="blob", times=None), RateLimited())
    assert (await mirror.get(other)).code() == "TOOMANYREQUESTS"
    before = hub.count(kind="blob")
    assert (await mirror.get(other)).code() == "TOOMANYREQUESTS"
    assert hub.count(kind="blob") == before


async def test_nothing_left(hub, mirror, clock):
    """With no pulls left tags are checked on by HEAD, new ones are refused without a GET, and the number can be seen."""
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 1
    image = await pulled(hub, mirror)
    assert await mirror.metric("upstream_ratelimit_remaining", **UP) == 0
    assert await mirror.metric("upstream_ratelimit_limit", **UP) == 100
    hub.add_image(APP, "2")
    hub.reset_counters()
    clock.advance(5)
    for _ in range(20):
        assert (await mirror.get(f"/v2/{APP}/manifests/2")).code() == "TOOMANYREQUESTS"
    clock.advance(20)
    assert (await mirror.get(TAG)).body == image.raw
    assert hub.count("GET", "manifest") == 0


async def test_pulls_left_again(hub, mirror, clock):
    """A HEAD that tells of new pulls opens the way at once."""
    hub.ratelimit_remaining = 1
    await pulled(hub, mirror)
    new = hub.add_image(APP, "2")
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).status == 503
    hub.ratelimit_remaining = 50
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).body == new.raw


async def test_no_headers_needed(hub, mirror, clock):
    """An account without a limit is told of none, and nothing is missing."""
    hub.ratelimit_limit = None
    await pulled(hub, mirror)
    assert await mirror.metric("upstream_ratelimit_remaining", **UP) == 0
    assert mirror.registry().allows_background(10_000)


async def test_background_work_leaves_a_reserve(hub, mirror, clock):
    """Work that nobody waits for may ask while there is more than a reserve, and nothing is limited."""
    registry = mirror.registry()
    hub.ratelimit_remaining = 26
    await pulled(hub, mirror)
    assert (registry.allows_background(20), registry.allows_background(25)) == (True, False)
    clock.advance(61)
    hub.script(ALL, RateLimited())
    await mirror.get(TAG)
    assert not registry.allows_background(0)


# ---- one pull per digest


async def test_two_tags_of_one_image_cost_one_pull(hub, mirror, pulls_left):
    """Where pulls are saved, a second tag of an image that is held costs a HEAD only."""
    await pulls_left(mirror, 50)
    image = hub.add_image(APP, "1")
    hub.move_tag(APP, "latest", image.digest)
    assert (await mirror.get(TAG)).cache == "MISS"
    answer = await mirror.get(f"/v2/{APP}/manifests/latest")
    assert (answer.cache, answer.body) == ("REVALIDATED", image.raw)
    assert hub.count("GET", "manifest", status=200) == 1


async def test_tag_and_digest_at_once_cost_one_pull(hub, mirror, pulls_left, all_in):
    """Where pulls are saved, upstream counts one, however many ask for an image by tags and by digest at the same time."""
    await pulls_left(mirror, 50)
    image = hub.add_image(APP, "1")
    hub.move_tag(APP, "latest", image.digest)
    held = NoHeaders()
    hub.script(Rule(kind="manifest", method="GET"), held)
    references = ["1", "latest", image.digest] * 5
    asking = [asyncio.create_task(mirror.get(f"/v2/{APP}/manifests/{reference}")) for reference in references]
    await all_in(15)
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    held.release()
    assert {answer.body for answer in await asyncio.gather(*asking)} == {image.raw}
    assert hub.count("GET", "manifest", status=200) == 1
    assert hub.ratelimit_remaining == 50 - 1


# ---- a reload


async def test_reload_does_not_forget_the_limit(hub, tmp_path, monkeypatch):
    """After a 429 nothing reaches upstream before the window ends, however often the configuration is read again."""
    settings = {"tags": {"ttl": "0s"}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        image = await pulled(hub, mirror)
        clock = Clock(mirror, monkeypatch)
        entry = hub.script(ALL, RateLimited(retry_after=77))
        assert (await mirror.get(TAG)).cache == "STALE"
        before = dict(hub.accepted)
        hub.reset_counters()
        for _ in range(3):
            await mirror.reload(**settings)
            answer = await mirror.get(TAG)
            assert (answer.cache, answer.body) == ("STALE", image.raw)
            assert (await mirror.get(f"/v2/{APP}/manifests/2")).code() == "TOOMANYREQUESTS"
        assert (hub.accepted, hub.count()) == (before, 0)
        clock.advance(78)
        entry.remove()
        assert (await mirror.get(TAG)).cache == "REVALIDATED"


async def test_another_account_has_another_limit(hub, tmp_path):
    """With an account, the limit that was met without it says nothing."""
    password = tmp_path / "password"
    password.write_text("correct")
    hub.users = {"robot": "correct"}
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": registry}) as mirror:
        image = hub.add_image(APP, "1")
        hub.script(Rule(kind="manifest", challenge=True), RateLimited())
        assert (await mirror.get(TAG)).code() == "TOOMANYREQUESTS"
        account = {"username": "robot", "password_file": str(password)}
        await mirror.reload(registries={"docker.io": {**registry, **account}})
        assert (await mirror.get(TAG)).body == image.raw


async def fail_lastingly(mirror, clock):
    """Have the mirror find out that its upstream is out of order."""
    for seconds in (6, 0):
        assert (await mirror.get(TAG)).status == 503
        clock.advance(seconds)


async def test_reload_goes_on_probing(hub, mirror, clock):
    """An upstream that was out of order before a reload costs nothing after it, and is found to be back all the same."""
    image = hub.add_image(APP, "1")
    await hub.stop()
    await fail_lastingly(mirror, clock)
    for _ in range(2):
        await mirror.reload()
    assert "not asked for now" in (await mirror.get(TAG)).body.decode()
    await hub.start()
    await mirror.recovered()
    assert (await mirror.get(TAG)).body == image.raw


async def test_probing_after_a_reload(hub, mirror, clock):
    """An upstream that gets out of order after a reload is probed by what has taken over, when all else is closed."""
    image = hub.add_image(APP, "1")
    old = mirror.graph
    await mirror.reload()
    await eventually(lambda: old.http._session.closed)
    await hub.stop()
    await fail_lastingly(mirror, clock)
    await hub.start()
    await mirror.recovered()
    assert (await mirror.get(TAG)).body == image.raw
