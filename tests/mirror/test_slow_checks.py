"""A held, complete tag never makes a client wait for upstream: after a while the old image is served, and the check goes on."""

import asyncio
import contextlib
import time

import pytest

from mirror.core.staleness import said
from tests.fakehub import NoHeaders, Rule, Status
from tests.mirror.images import pulled
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, tag_name
from tests.support.waiting import LIMIT, SOON, eventually

WAIT = 0.5
HEAD = Rule(kind="manifest", method="HEAD", times=None)
GET = Rule(kind="manifest", method="GET", times=None)


@pytest.fixture
async def mirrors(hub, tmp_path):
    """Makes a mirror that waits `WAIT` seconds for a check, with other settings for tags if wanted."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**tags):
            settings = {"revalidate_timeout": f"{int(WAIT * 1000)}ms", **tags}
            return await stack.enter_async_context(MirrorUnderTest(hub, tmp_path / "store", tags=settings))

        yield make


@pytest.fixture
async def mirror(mirrors):
    return await mirrors()


def silence(hub, rule=HEAD):
    """Have upstream answer nothing of a kind until it is released."""
    held = NoHeaders()
    return held, hub.script(rule, held)


def end(held, entry):
    entry.remove()
    held.release()


async def timed(asking):
    started = time.monotonic()
    return await asking, time.monotonic() - started


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_silence_costs_no_more_than_the_limit(hub, mirror, clock, method):
    """After the limit the old image is served STALE, and answer, metric and warning say that upstream is slow."""
    image = await pulled(hub, mirror)
    clock.advance(61)
    silence(hub)
    answer, seconds = await timed(mirror.get(TAG, method))
    assert WAIT <= seconds < SOON
    assert (answer.status, answer.cache) == (200, "STALE")
    assert answer.headers["Docker-Content-Digest"] == image.digest
    assert answer.body == (image.raw if method == "GET" else b"")
    assert answer.headers["Warning"] == f'110 - "{said("slow")}"'
    assert await mirror.metric("stale_served_total", registry="docker.io", reason="slow") == 1


async def test_result_of_the_check_counts(hub, mirror, clock):
    """The check that a client did not wait for goes on, and what it finds is served from then on, without another check."""
    await pulled(hub, mirror)
    clock.advance(61)
    held, entry = silence(hub)
    assert (await mirror.get(TAG)).cache == "STALE"
    end(held, entry)
    hub.reset_counters()
    await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer.cache == "HIT")
    assert hub.count() == 0


async def test_moved_tag_is_fetched_behind(hub, mirror, clock):
    """If the tag has moved and its new manifest is slow to come, the old image is served until it is there."""
    old = await pulled(hub, mirror)
    new = hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    held, entry = silence(hub, GET)
    answer, seconds = await timed(mirror.get(TAG))
    assert (answer.cache, answer.body) == ("STALE", old.raw)
    assert seconds < SOON
    assert str(mirror.store.index.tags.get(*tag_name("1")).digest) == old.digest
    end(held, entry)
    answer = await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer.cache == "HIT")
    assert answer.body == new.raw


async def test_one_check_for_all(hub, mirrors, monkeypatch):
    """Who asks while a check is under way shares it and its limit: whoever comes after that is answered at once."""
    mirror = await mirrors(revalidate_timeout="2s")
    await pulled(hub, mirror)
    Clock(mirror, monkeypatch).advance(61)
    silence(hub)
    hub.reset_counters()
    answers, seconds = await timed(asyncio.gather(*[mirror.get(TAG, method) for method in ("GET", "HEAD") * 10]))
    assert {answer.cache for answer in answers} == {"STALE"}
    assert seconds < SOON
    late, seconds = await timed(mirror.get(TAG))
    assert (late.cache, seconds < 2) == ("STALE", True)
    assert hub.count("HEAD", "manifest") == 1
    assert await mirror.metric("stale_served_total", reason="slow") == 21


async def test_answer_in_time_is_waited_for(hub, mirrors, monkeypatch):
    """A check that ends within the limit is waited for."""
    mirror = await mirrors(revalidate_timeout="60s")
    await pulled(hub, mirror)
    Clock(mirror, monkeypatch).advance(61)
    held, entry = silence(hub)
    asking = asyncio.create_task(mirror.get(TAG))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    end(held, entry)
    assert (await asking).cache == "REVALIDATED"


async def test_limit_of_nothing(hub, mirrors, monkeypatch):
    """With a limit of 0 nobody waits at all: the old image is served, and checked behind."""
    mirror = await mirrors(revalidate_timeout="0")
    await pulled(hub, mirror)
    Clock(mirror, monkeypatch).advance(61)
    assert (await mirror.get(TAG)).cache == "STALE"
    await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer.cache == "HIT")


async def waits(hub, mirror, rule=HEAD):
    """Whether a client is kept waiting beyond the limit, until upstream answers."""
    held, entry = silence(hub, rule)
    asking = asyncio.create_task(mirror.get(TAG))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    done, _ = await asyncio.wait([asking], timeout=2 * WAIT)
    end(held, entry)
    return not done, (await asking).cache


async def test_incomplete_image_is_not_served(hub, mirror, clock):
    """Where a layer is gone there is nothing to serve, and upstream's answer is waited for, by the same check."""
    image = await pulled(hub, mirror)
    mirror.blob_path(image.layers[0].digest).unlink()
    clock.advance(61)
    hub.reset_counters()
    assert await waits(hub, mirror) == (True, "REVALIDATED")
    assert hub.count("HEAD", "manifest") == 1


async def test_unknown_tag_is_waited_for(hub, mirror):
    """A tag that nobody has pulled has nothing old."""
    hub.add_image(APP, "1")
    assert await waits(hub, mirror, GET) == (True, "MISS")


async def test_nothing_stale_is_wanted(hub, mirrors, monkeypatch):
    """Where nothing may be served stale, upstream's answer is waited for."""
    mirror = await mirrors(stale_if_error="0")
    await pulled(hub, mirror)
    Clock(mirror, monkeypatch).advance(61)
    assert await waits(hub, mirror) == (True, "REVALIDATED")


async def test_no_in_time_is_an_answer(hub, mirror, clock):
    """Upstream's no that comes behind ends the tag for whoever asks next."""
    await pulled(hub, mirror)
    clock.advance(61)
    held = NoHeaders()
    entry = hub.script(HEAD, Status(404), held)
    assert (await mirror.get(TAG)).cache == "STALE"
    end(held, entry)
    hub.delete_tag(APP, "1")
    await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer.status == 404)
