"""What upstream fails at once is mended inside: the client notices nothing, and the next one is not refused for it."""

import asyncio
import contextlib
import dataclasses
import socket
import time

import pytest

from tests.fakehub import Disconnect, Html, NoHeaders, RateLimited, Reset, Rule, Stall, Status, WrongLength
from tests.mirror.images import pulled
from tests.mirror.transfers import Transfer
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, MIB, TAG
from tests.support.waiting import LIMIT, SOON, eventually

ONCE = [
    pytest.param(Status(503), id="503"),
    pytest.param(Status(500), id="500"),
    pytest.param(Disconnect(), id="closed"),
    pytest.param(Disconnect(reset=True), id="reset"),
]
IN_BODY = [pytest.param(Reset(10), id="reset in body"), pytest.param(Stall(10), id="silence in body")]


@pytest.fixture
def hasty(mirror):
    """A `mirror` that sends a request once more when there is no answer after a moment."""
    mirror.set_limits(hedge=0.1)
    return mirror


def silence():
    return NoHeaders()


# ---- once


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("fault", ONCE)
async def test_manifest(hub, mirror, method, fault):
    """One failure of a manifest, asked for by tag, does not reach the client."""
    image = hub.add_image(APP, "1")
    rule = hub.script(Rule(kind="manifest", method=method), fault)
    answer = await mirror.get(TAG, method)
    assert (answer.status, answer.body, rule.used) == (200, image.raw if method == "GET" else b"", 1)


@pytest.mark.parametrize("fault", IN_BODY)
async def test_manifest_that_breaks(hub, hasty, fault):
    """A manifest of which a part comes, and then no more, is asked for again."""
    image = hub.add_image(APP, "1")
    rule = hub.script(Rule(kind="manifest", method="GET"), fault)
    started = time.monotonic()
    assert (await hasty.get(TAG)).body == image.raw
    assert rule.used == 1
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("fault", ONCE)
async def test_held_tag(hub, mirror, clock, fault):
    """A check that fails once is made again before something old is served."""
    await pulled(hub, mirror)
    clock.advance(61)
    hub.script(Rule(kind="manifest", method="HEAD"), fault)
    assert (await mirror.get(TAG)).cache == "REVALIDATED"


@pytest.mark.parametrize("kind", ["token", "tags"])
async def test_other_kinds(hub, mirror, kind):
    """So it is for tokens and for lists."""
    hub.add_image(APP, "1")
    rule = hub.script(Rule(kind=kind), Status(503))
    assert (await mirror.get(f"/v2/{APP}/tags/list")).status == 200
    assert rule.used == 1


SILENT = [
    pytest.param(Rule(kind="manifest", method="HEAD"), TAG, id="HEAD of a manifest"),
    pytest.param(Rule(kind="manifest", method="GET"), TAG, id="manifest"),
    pytest.param(Rule(kind="token"), TAG, id="token"),
    pytest.param(Rule(kind="tags"), f"/v2/{APP}/tags/list", id="tags"),
    pytest.param(Rule(kind="blob", host="registry"), "blob", id="blob"),
    pytest.param(Rule(kind="blob", host="cdn"), "blob", id="cdn"),
]


@pytest.mark.parametrize(("rule", "path"), SILENT)
async def test_silence(hub, hasty, rule, path):
    """One connection on which no answer comes is left for another one, long before its time limit."""
    image = hub.add_image(APP, "1")
    blob = image.layers[0]
    entry = hub.script(rule, silence())
    started = time.monotonic()
    answer = await hasty.get(f"/v2/{APP}/blobs/{blob.digest}" if path == "blob" else path, rule.method or "GET")
    assert time.monotonic() - started < SOON
    assert (answer.status, entry.used) == (200, 1)
    if path != f"/v2/{APP}/tags/list" and rule.method != "HEAD":
        assert answer.body == (blob.data if path == "blob" else image.raw)


async def test_slow_answer_is_taken_all_the_same(hub, hasty):
    """Where the second request is not answered either, the first one's answer is taken when it comes."""
    image = hub.add_image(APP, "1")
    first, second = silence(), silence()
    for held in (first, second):
        hub.script(Rule(kind="manifest", method="GET"), held)
    asking = asyncio.create_task(hasty.get(TAG))
    await asyncio.wait_for(second.reached.wait(), LIMIT)
    first.release()
    assert (await asking).body == image.raw


async def test_connections_of_the_loser_are_given_back(hub, tmp_path):
    """However often the first of two requests loses, all connections can be used again."""
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"max_upstream_connections": 2}) as mirror:
        mirror.set_limits(hedge=0.05)
        image = hub.add_image(APP, "1", layers=[bytes([number]) * 1000 for number in range(6)])
        for blob in image.layers:
            hub.script(Rule(kind="blob", host="cdn"), silence())
            assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
        await eventually(lambda: mirror.services.connections.in_use.total == 0)


# ---- within the pull limit


@pytest.mark.parametrize(("left", "asked"), [(5, 1), (1000, 2)])
async def test_silence_costs_no_second_pull_where_few_are_left(hub, hasty, pulls_left, left, asked):
    """A manifest's GET, which counts, is sent once more only if there are plenty of pulls; HEADs always are."""
    await pulls_left(hasty, left)
    image = hub.add_image(APP, "1")
    held = silence()
    hub.script(Rule(kind="manifest", method="GET"), held)
    entry = hub.script(Rule(kind="manifest", method="HEAD"), silence())
    assert (await hasty.head(TAG)).status == 200
    assert entry.used == 1
    asking = asyncio.create_task(hasty.get(f"/v2/{APP}/manifests/{image.digest}"))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    await asyncio.wait([asking], timeout=0.5)
    await eventually(lambda: hub.count("GET", "manifest") == asked)
    held.release()
    assert (await asking).body == image.raw


@pytest.mark.parametrize(("fault", "asked"), [(Status(503), 2), (Reset(10), 1)], ids=["503", "reset"])
async def test_failure_costs_no_second_pull_where_few_are_left(hub, mirror, pulls_left, fault, asked):
    """With few pulls left, a manifest is asked for once more only after an answer that cannot have counted."""
    await pulls_left(mirror, 5)
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", method="GET"), fault)
    answer = await mirror.get(TAG)
    # Each is first answered with the challenge for a token.
    assert hub.count("GET", "manifest") - hub.count("GET", "manifest", status=401) == asked
    assert (answer.status, answer.body == image.raw) == ((200, True) if asked == 2 else (503, False))


async def test_pull_limit_is_not_asked_twice(hub, mirror):
    """A 429 is an answer, which asking once more would not change."""
    hub.add_image(APP, "1")
    entry = hub.script(Rule(kind="manifest", times=None), RateLimited())
    assert (await mirror.get(TAG)).code() == "TOOMANYREQUESTS"
    assert entry.used == 1


# ---- blobs of a known size

SIZES = [
    pytest.param(Html(), id="page"),
    pytest.param(WrongLength(+9), id="longer"),
    pytest.param(WrongLength(-9), id="shorter"),
]


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("fault", SIZES)
async def test_blob_whose_size_a_manifest_told(hub, mirror, fault, size):
    """An answer of another length than the manifest told is not the blob, and is asked for again before the client sees it."""
    image = hub.add_image(APP, "1", layers=[hub.add_synthetic_blob(APP, size)])
    assert (await mirror.get(TAG)).body == image.raw
    hub.script(Rule(host="cdn", method="GET"), fault)
    answer = await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
    assert (answer.status, answer.sha256) == (200, image.layers[0].digest)


async def test_manifest_may_be_wrong_about_a_size(hub, mirror):
    """A size that upstream contradicts twice was wrong: the blob is what its digest names."""
    blob = hub.add_synthetic_blob(APP, 1000)
    image = hub.add_image(APP, "1", layers=[dataclasses.replace(blob, size=999)])
    assert (await mirror.get(TAG)).body == image.raw
    hub.add_synthetic_blob(APP, 1000)
    assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).sha256 == blob.digest


async def test_blob_without_a_first_byte(hub, tmp_path):
    """A blob whose headers come and whose bytes do not is asked for again."""
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"stall_timeout": "300ms"}) as mirror:
        blob = Transfer(hub, mirror, 3 * MIB)
        hub.script(Rule(host="cdn", method="GET"), Stall(0))
        assert (await blob.get()).body == blob.data


@pytest.mark.parametrize("fault", [Status(503), Disconnect(), Html()], ids=["503", "closed", "page"])
async def test_blob_past_the_store(hub, tmp_path, fault):
    """What the store cannot take is asked for again as well, if the stream past it fails at first."""
    async with MirrorUnderTest(hub, tmp_path / "store", storage={"max_size": "4MiB"}) as mirror:
        image = hub.add_image(APP, "1", layers=[hub.add_synthetic_blob(APP, 5 * MIB)])
        assert (await mirror.get(TAG)).body == image.raw
        # The first stream is that of the download, which finds no room.
        rule = hub.script(Rule(host="cdn", method="GET", skip=1), fault)
        answer = await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
        assert (answer.status, answer.cache, answer.sha256) == (200, "BYPASS", image.layers[0].digest)
        assert rule.used == 1


# ---- out of order


async def test_silent_connections_refuse_nobody_else(hub, impatient):
    """After a blob of which no answer has come, on any connection, the next client of the same blob is served."""
    blob = hub.add_image(APP, "1").layers[0]
    path = f"/v2/{APP}/blobs/{blob.digest}"
    rule = hub.script(Rule(kind="blob", host="cdn", times=None), silence())
    assert (await impatient.get(path)).status == 503
    rule.remove()
    impatient.set_limits(connect=LIMIT, headers=LIMIT)
    assert (await impatient.get(path)).body == blob.data


async def test_failures_in_a_moment_are_no_outage(hub, mirror):
    """However many manifests fail in a moment, the only upstream is asked on, for manifests as for blobs."""
    image = hub.add_image(APP, "1")
    rule = hub.script(Rule(kind="manifest", times=None), Status(503))
    answers = await asyncio.gather(*[mirror.get(f"/v2/{APP}/manifests/{number}") for number in range(10)])
    assert {answer.status for answer in answers} == {503}
    rule.remove()
    blob = image.layers[0]
    assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert (await mirror.get(TAG)).body == image.raw


async def test_failures_that_last_are_an_outage_of_their_kind(hub, mirror, clock):
    """After some seconds of nothing but failures manifests are not asked for; blobs and lists, which do not fail, are."""
    image = hub.add_image(APP, "1", layers=[b"one", b"two"])
    hub.script(Rule(kind="manifest", times=None), Status(503))
    hub.script(Rule(kind="ping", times=None), Status(503))
    for number in range(3):
        assert (await mirror.get(f"/v2/{APP}/manifests/{number}")).status == 503
        clock.advance(3)
    hub.reset_counters()
    answer = await mirror.get(f"/v2/{APP}/manifests/x")
    assert (answer.status, hub.count(kind="manifest")) == (503, 0)
    assert "not asked for now" in answer.body.decode()
    for blob in image.layers:
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data
    assert (await mirror.get(f"/v2/{APP}/tags/list")).status == 200


async def test_token_host_that_fails_does_not_stop_what_needs_no_token(hub, mirror, clock):
    """While no tokens can be had, what a token is at hand for is asked for as ever."""
    image = hub.add_image(APP, "1")
    hub.add_image("library/other", "1")
    assert (await mirror.get(TAG)).status == 200
    hub.script(Rule(kind="token", times=None), Status(503))
    hub.script(Rule(kind="ping", times=None), Status(503))
    for _ in range(3):
        assert (await mirror.get("/v2/library/other/manifests/1")).status == 503
        clock.advance(3)
    before = hub.count(kind="token")
    assert (await mirror.get("/v2/library/other/tags/list")).status == 503
    assert hub.count(kind="token") == before
    blob = image.layers[0]
    assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).body == blob.data


async def test_connection_that_does_not_come_about_costs_its_limit_once(hub, tmp_path):
    """Where packets are dropped, a request is given up after the time limit for connections, and not tried for as long again."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            # With its queue full the kernel drops what else comes.
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        entry = {"upstreams": [f"http://127.0.0.1:{listener.getsockname()[1]}"]}
        settings = {"registries": {"docker.io": entry}, "downloads": {"connect_timeout": "1s"}}
        async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
            started = time.monotonic()
            answer = await mirror.get(TAG)
            assert time.monotonic() - started >= 1
            assert "cannot connect" in answer.body.decode()
            assert await mirror.metric("upstream_requests_total", status="connect") == 1


async def test_refused_connections_speak_for_every_kind(hub, mirror, clock):
    """Where no connection comes about for some seconds, nothing is asked for, of whatever kind, until it does again."""
    image = hub.add_image(APP, "1")
    await hub.stop()
    for _ in range(2):
        assert (await mirror.get(f"/v2/{APP}/tags/list")).status == 503
        clock.advance(6)
    answer = await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
    assert "not asked for now" in answer.body.decode()
    await hub.start()
    await mirror.recovered()
    assert (await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")).body == image.layers[0].data
