"""Several upstreams of one registry: the first that answers usefully is it."""

import asyncio
import contextlib
import random
import socket
import time

import pytest

from tests.fakehub import (
    BadContentRange,
    Corrupt,
    Cut,
    Disconnect,
    FakeHub,
    Headers,
    Html,
    NoHeaders,
    RateLimited,
    Reset,
    Rule,
    Stall,
    Status,
)
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.waiting import SOON, eventually
from tests.support.wire import Wire


@pytest.fixture
async def second():
    """Another upstream with the same content."""
    async with FakeHub() as running:
        yield running


@pytest.fixture
async def both(hub, second, tmp_path):
    """A mirror that asks `hub` first and `second` after it, with one connection for blobs."""
    entry = {"upstreams": [hub.url, second.url], "token_hosts": [hub.token_host, second.token_host]}
    settings = {"registries": {"docker.io": entry}, "downloads": {"max_upstream_connections": 1}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        yield mirror


FAULTS = [Status(503), RateLimited(), Disconnect(), Status(418), Headers({"Content-Encoding": "gzip"})]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_second_steps_in(hub, second, both, fault):
    """What the first upstream cannot deliver comes from the second, at once, even if there is only one connection."""
    for one in (hub, second):
        image = one.add_image(APP, "1")
        one.redirect_blobs = False
    blob = image.layers[0]
    hub.script(Rule(kind="blob", times=None), fault)
    assert (await both.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert hub.count("GET", "blob", status=200) <= 1
    assert second.count("GET", "blob", status=200) == 1


@pytest.mark.parametrize("fault", [Status(503), Html(), RateLimited()], ids=lambda fault: type(fault).__name__)
async def test_second_has_the_manifest(hub, second, both, fault):
    """Manifests come from the second as well, and both upstreams' states are told."""
    for one in (hub, second):
        image = one.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None), fault)
    assert (await both.get(f"/v2/{APP}/manifests/1")).body == image.raw
    assert await both.metric("upstream_up", upstream=hub.registry_host) == 0
    assert await both.metric("upstream_up", upstream=second.registry_host) == 1


async def test_first_is_down(hub, second, both):
    """A first upstream that is down costs nothing but a refused connection."""
    image = second.add_image(APP, "1")
    await hub.stop()
    assert (await both.get(f"/v2/{APP}/manifests/1")).body == image.raw


async def test_all_are_down(hub, second, both):
    """With all upstreams down the answer is 503."""
    await hub.stop()
    await second.stop()
    assert (await both.get(f"/v2/{APP}/manifests/1")).status == 503


async def test_first_is_enough(hub, second, both):
    """As long as the first upstream answers, the second is not asked."""
    hub.add_image(APP, "1")
    assert (await both.get(f"/v2/{APP}/manifests/1")).status == 200
    assert (await both.get(f"/v2/{APP}/manifests/2")).status == 404
    assert sum(second.accepted.values()) == 0


# ---- in the middle of a blob

SIZE, BREAK = 3 << 20, 2 << 20


@pytest.fixture
async def pair(hub, second, tmp_path, monkeypatch):
    """A mirror with a clock that asks `hub` first and `second` after it."""
    entry = {"upstreams": [hub.url, second.url], "token_hosts": [hub.token_host, second.token_host]}
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
        mirror.clock = Clock(mirror, monkeypatch)
        yield mirror


def same_blob(*hubs, size=SIZE, seed=1):
    data = random.Random(seed).randbytes(size)
    (digest,) = {one.add_blob(APP, data) for one in hubs}
    return data, f"/v2/{APP}/blobs/{digest}"


def ranges(hub):
    return [seen.range for seen in hub.find("GET", host="cdn")]


@pytest.mark.parametrize("fault", [Cut(BREAK), Reset(BREAK), Stall(BREAK)], ids=["cut", "reset", "stall"])
async def test_second_goes_on_from_the_broken_byte(hub, second, pair, fault):
    """A body that breaks is continued by the second upstream from where it broke; the client sees nothing of it."""
    data, path = same_blob(hub, second)
    hub.script(Rule(host="cdn", method="GET"), fault)
    if isinstance(fault, Stall):
        pair.set_limits(stall=1.0)
    assert (await pair.get(path)).body == data
    assert ranges(hub) == [None]
    (rest,) = ranges(second)
    assert BREAK - (256 << 10) <= int(rest.removeprefix("bytes=").removesuffix("-")) <= BREAK


async def test_first_is_trusted_again(hub, second, pair):
    """After a broken body the next blobs come from the second upstream, and after a while from the first again."""
    blobs = [same_blob(hub, second, size=300_000, seed=seed) for seed in range(3)]
    hub.script(Rule(host="cdn", method="GET"), Cut(100_000))
    for (data, path), wait in zip(blobs, (0, 31, 0), strict=True):
        assert (await pair.get(path)).body == data
        pair.clock.advance(wait)
    assert (len(ranges(hub)), len(ranges(second))) == (2, 2)


async def test_first_stalls_before_the_first_byte(hub, second, pair):
    """An upstream that announces a blob and sends no byte of it costs one stall, not the pull."""
    data, path = same_blob(hub, second)
    hub.script(Rule(host="cdn", method="GET", times=None), Stall(0))
    pair.set_limits(stall=0.5)
    assert (await pair.get(path)).body == data


async def test_sizes_must_agree(hub, second, pair):
    """A second upstream with another size for the blob is not mixed in; the first finishes it."""
    data, path = same_blob(hub, second)
    hub.script(Rule(host="cdn", method="GET"), Cut(BREAK))
    second.script(Rule(host="cdn", method="GET", times=None), BadContentRange(f"bytes {BREAK}-{SIZE}/{SIZE + 1}"))
    assert (await pair.get(path)).body == data
    assert len(ranges(hub)) == 2


async def test_wrong_bytes_come_from_the_second(hub, second, pair):
    """A blob that comes with the wrong digest from the first upstream is fetched anew from the second."""
    data, path = same_blob(hub, second, size=1000)
    hub.script(Rule(host="cdn", method="GET", times=None), Corrupt(5))
    assert (await pair.get(path)).body == data
    assert (ranges(hub), ranges(second)) == ([None], [None])


async def test_wrong_bytes_are_not_held_against_one_that_is_out_of_order(hub, second, tmp_path):
    """With the first upstream out of order it is the second whose bytes were wrong, and the third that is asked next."""
    async with FakeHub() as third:
        data, path = same_blob(second, third, size=1000)
        upstreams = [hub.url, second.url, third.url]
        entry = {"upstreams": upstreams, "token_hosts": [second.token_host, third.token_host]}
        second.script(Rule(host="cdn", method="GET", times=None), Corrupt(5))
        await hub.stop()
        async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
            assert (await mirror.get(path)).body == data
    assert (ranges(second), ranges(third)) == ([None], [None])


# ---- out of order


def names(hub):
    return {"registry": "docker.io", "upstream": hub.registry_host}


async def fast(mirror, path):
    """An answer that waits for nothing: from here on all time limits are longer than this takes."""
    limit_headers(mirror, 4 * SOON)
    async with asyncio.timeout(SOON):
        return await mirror.get(path)


def limit_headers(mirror, seconds):
    mirror.set_limits(connect=seconds / 2, headers=seconds / 2, hedge=seconds)


async def test_silent_upstream_costs_one_time_limit(hub, second, pair):
    """An upstream that takes requests and never answers is waited for once; it is found by itself when it is back."""
    images = [hub.add_image(APP, str(tag)) for tag in range(20)]
    second.repositories = hub.repositories
    limit_headers(pair, 2.0)
    silence = NoHeaders()
    rules = [hub.script(Rule(kind=kind, times=None, challenge=True), silence) for kind in ("ping", "manifest")]
    assert (await pair.get(f"/v2/{APP}/manifests/0")).body == images[0].raw
    asked = hub.count(kind="manifest")
    for tag in range(1, 20):
        assert (await fast(pair, f"/v2/{APP}/manifests/{tag}")).body == images[tag].raw
    assert hub.count(kind="manifest") == asked
    assert await pair.metric("upstream_up", **names(hub)) == 0
    for rule in rules:
        rule.remove()
    silence.release()
    await eventually(lambda: pair.metric("upstream_up", **names(hub)), holds=lambda seen: seen != 0)
    hub.add_image(APP, "new")
    assert (await pair.get(f"/v2/{APP}/manifests/new")).status == 200


async def test_upstream_that_drops_packets(hub, tmp_path):
    """An upstream to which no connection comes about costs one time limit, then nothing."""
    with socket.socket() as listener, contextlib.ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            # With its queue full the kernel drops what else comes.
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        image = hub.add_image(APP, "1")
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
        entry = {"upstreams": [dead, hub.url], "token_hosts": [hub.token_host]}
        settings = {"registries": {"docker.io": entry}, "downloads": {"connect_timeout": "1s"}}
        async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
            started = time.monotonic()
            assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == image.raw
            assert time.monotonic() - started >= 1
            assert (await fast(mirror, f"/v2/{APP}/manifests/none")).status == 404
            assert (await fast(mirror, f"/v2/{APP}/blobs/{image.layers[0].digest}")).status == 200


async def test_one_kind_does_not_speak_for_another(hub, second, pair):
    """An upstream whose manifests fail is asked for blobs as ever; its manifests come from the next one, without asking it."""
    images = [hub.add_image(APP, str(tag)) for tag in range(5)]
    second.repositories = hub.repositories
    # A challenge would do for an answer to a probe.
    for kind in ("manifest", "ping"):
        hub.script(Rule(kind=kind, times=None, challenge=kind == "ping"), Status(503))
    for tag in range(5):
        assert (await pair.get(f"/v2/{APP}/manifests/{tag}")).body == images[tag].raw
    assert hub.count(kind="manifest", status=503) == 3
    blob = images[0].layers[0]
    assert (await pair.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert (len(ranges(hub)), len(ranges(second))) == (1, 0)


async def answered(wire, path):
    """The answer to one of many requests over one connection."""
    await wire.send(f"GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())
    return await wire.reply()


async def test_storm_on_dead_upstreams(hub, second, pair):
    """Two thousand requests for many tags of dead upstreams are answered 503 at once, and each is asked a handful of times."""
    for one in (hub, second):
        one.auth = "none"
        one.script(Rule(kind="manifest", times=None), Status(503))
        one.script(Rule(kind="ping", times=None), Status(503))
    paths = [f"/v2/{APP}/manifests/{number % 200}" for number in range(2000)]
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(pair.port)) for _ in range(100)]
        for start in range(0, len(paths), 100):
            replies = await asyncio.gather(*map(answered, wires, paths[start : start + 100]))
            assert {reply.status for reply in replies} == {503}
            assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies)
    # What had been under way when the first failures came back, at most one for each of the first hundred.
    assert max(hub.count(kind="manifest"), second.count(kind="manifest")) <= 120
    before = hub.count(kind="manifest")
    assert (await fast(pair, paths[0])).code() == "UNAVAILABLE"
    assert hub.count(kind="manifest") == before


async def test_storm_on_one_bad_tag(hub, mirror):
    """A tag for which upstream has only nonsense costs it a handful of requests, however many want it, and others none."""
    hub.auth = "none"
    image = hub.add_image(APP, "good")
    hub.add_image(APP, "bad")
    hub.script(Rule(kind="manifest", reference="bad", times=None), Status(418))
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(mirror.port)) for _ in range(100)]
        for _ in range(10):
            replies = await asyncio.gather(*[answered(wire, f"/v2/{APP}/manifests/bad") for wire in wires])
            assert {reply.status for reply in replies} == {503}
    assert hub.count(kind="manifest", reference="bad") <= 5
    assert (await mirror.get(f"/v2/{APP}/manifests/good")).body == image.raw


async def test_silent_cdn_is_not_held_against_its_upstream(hub, second, both, monkeypatch):
    """An upstream whose share of the time is used up by where it redirects to is in order itself."""
    # Both upstreams answer within a part of it, on a busy machine, too.
    monkeypatch.setattr("mirror.upstream.registry._TIMEOUT_S", 2.4)
    data, path = same_blob(hub, second)
    held = NoHeaders()
    hub.script(Rule(host="cdn", times=None), held)
    assert (await both.get(path)).body == data
    held.release()
    health = both.upstream().health
    assert health.own.breaker.is_closed
    assert not health.content.breaker.is_closed


async def test_dead_cdn_does_not_stop_manifests(hub, mirror, clock):
    """Where only the host of the content is dead, for some seconds, manifests are fetched as ever, and blobs refused at once."""
    image = hub.add_image(APP, "1", layers=[b"one", b"two", b"three"])
    hub.script(Rule(host="cdn", times=None), Disconnect())
    blobs = [f"/v2/{APP}/blobs/{blob.digest}" for blob in image.layers]
    for blob, seconds in zip(blobs[:2], (6, 0), strict=True):
        assert (await mirror.get(blob)).status == 503
        clock.advance(seconds)
    # Asking it once more would take longer than `fast` waits.
    hub.clear_script()
    hub.script(Rule(host="cdn", times=None), NoHeaders())
    assert (await fast(mirror, blobs[2])).status == 503
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == image.raw


async def test_no_is_an_answer(hub, mirror):
    """An upstream that says no to everything is up, and is asked on."""
    for number in range(10):
        assert (await mirror.get(f"/v2/{APP}/manifests/{number}")).status == 404
    assert await mirror.metric("upstream_up", **names(hub)) == 1


async def test_time_that_runs_out_counts(hub, mirror, clock, monkeypatch):
    """An attempt that is ended because clients would not wait longer counts against upstream."""
    monkeypatch.setattr("mirror.upstream.registry._TIMEOUT_S", 0.3)
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None, challenge=True), NoHeaders())
    for seconds in (6, 0):
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 503
        clock.advance(seconds)
    assert await mirror.metric("upstream_up", **names(hub)) == 0
    assert (await fast(mirror, f"/v2/{APP}/manifests/2")).status == 503
