"""Old over nothing: cached tags in an outage, and when they are not served."""

import os

import pytest

from mirror.core.staleness import said
from tests.fakehub import (
    AbuseLimited,
    Disconnect,
    Html,
    HugeHeaders,
    NoHeaders,
    RateLimited,
    Rule,
    Status,
)
from tests.mirror.images import pulled
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG

DAY = 86400


def manifests_fail(hub, *faults):
    hub.script(Rule(kind="manifest", times=None, challenge=True), *faults)


async def refuse(hub, mirror):
    await hub.stop()


async def silent(hub, mirror):
    mirror.set_limits(connect=0.5, headers=0.5)
    manifests_fail(hub, NoHeaders())


def failing(*faults):
    async def fail(hub, mirror):
        manifests_fail(hub, *faults)

    return fail


OUTAGES = [
    pytest.param(refuse, "connect", id="refused"),
    pytest.param(silent, "timeout", id="no headers"),
    pytest.param(failing(Status(500)), "server_error", id="500"),
    pytest.param(failing(Status(502)), "server_error", id="502"),
    pytest.param(failing(Status(503)), "server_error", id="503"),
    pytest.param(failing(RateLimited()), "rate_limited", id="pull limit"),
    pytest.param(failing(AbuseLimited()), "rate_limited", id="abuse limit"),
    pytest.param(failing(Disconnect()), "cut", id="closed"),
    pytest.param(failing(Disconnect(reset=True)), "cut", id="reset"),
    pytest.param(failing(HugeHeaders()), "protocol", id="huge headers"),
    pytest.param(failing(Status(418)), "protocol", id="418"),
]


@pytest.mark.parametrize(("outage", "reason"), OUTAGES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_stale_in_an_outage(hub, mirror, clock, outage, reason, method):
    """A tag that cannot be checked is served as it was, and the answer, the metric and the warning say so."""
    image = await pulled(hub, mirror)
    clock.advance(61)
    await outage(hub, mirror)
    answer = await mirror.get(TAG, method)
    assert (answer.status, answer.cache) == (200, "STALE")
    assert answer.headers["Docker-Content-Digest"] == image.digest
    assert answer.body == (image.raw if method == "GET" else b"")
    assert answer.headers["Warning"] == f'110 - "{said(reason)}"'
    assert await mirror.metric("stale_served_total", registry="docker.io", reason=reason) == 1


async def test_page_instead_of_a_manifest(hub, mirror, clock):
    """A captive portal's page with status 200 is no manifest: the old one is served, and nothing of the page is kept."""
    image = await pulled(hub, mirror)
    clock.advance(61)
    manifests_fail(hub, Html())
    answer = await mirror.get(TAG)
    assert (answer.cache, answer.body) == ("STALE", image.raw)


async def test_page_and_nothing_held(hub, mirror):
    """A page with status 200 and nothing held is an error of ours, not a manifest."""
    hub.add_image(APP, "1")
    manifests_fail(hub, Html())
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


async def test_stale_is_asked_again_each_time(hub, mirror, clock):
    """An outage's end is noticed with the next request."""
    await pulled(hub, mirror)
    clock.advance(61)
    # Each check asks twice.
    hub.script(Rule(kind="manifest", method="HEAD", times=2), Status(503))
    assert [(await mirror.get(TAG)).cache for _ in range(3)] == ["STALE", "REVALIDATED", "HIT"]


async def test_moved_but_not_to_be_had(hub, mirror, clock):
    """Upstream names a new digest by HEAD but will not hand it out: the old image is better than none."""
    old = await pulled(hub, mirror)
    new = hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    entry = hub.script(Rule(kind="manifest", method="GET", times=None), RateLimited())
    answer = await mirror.get(TAG)
    assert (answer.cache, answer.body) == ("STALE", old.raw)
    entry.remove()
    clock.advance(31)
    assert (await mirror.get(TAG)).body == new.raw


@pytest.mark.parametrize("missing", ["config", "layer"])
async def test_incomplete_image_is_not_served(hub, mirror, clock, missing):
    """A manifest whose blobs cannot follow is worse than an answer with which the client turns elsewhere."""
    image = await pulled(hub, mirror)
    blob = image.config if missing == "config" else image.layers[0]
    mirror.blob_path(blob.digest).unlink()
    clock.advance(61)
    await hub.stop()
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "Warning" not in answer.headers


async def test_unpulled_image_is_not_served(hub, mirror, clock):
    """A manifest that was only looked at, without its blobs, is not served in an outage."""
    hub.add_image(APP, "1")
    await mirror.get(TAG)
    clock.advance(61)
    await hub.stop()
    assert (await mirror.get(TAG)).status == 503


async def test_index_with_one_platform_held(hub, mirror, clock):
    """An index is served if one of its platforms is held whole, and not once that one is gone."""
    image = await pulled(hub, mirror, platforms=["linux/amd64", "linux/arm64"])
    await hub.stop()
    clock.advance(61)
    assert (await mirror.get(TAG)).cache == "STALE"
    first = next(iter(image.children.values()))
    mirror.blob_path(first.config.digest).unlink()
    assert (await mirror.get(TAG)).status == 503


async def test_manifest_lost_from_the_store(hub, mirror, clock):
    """A record without its manifest is nothing to serve."""
    image = await pulled(hub, mirror)
    mirror.blob_path(image.digest).unlink()
    clock.advance(61)
    await hub.stop()
    assert (await mirror.get(TAG)).status == 503


async def test_too_old_is_not_served(hub, mirror, clock):
    """After `stale_if_error` the old answer is none any more."""
    await pulled(hub, mirror)
    await hub.stop()
    clock.advance(30 * DAY - 5)
    assert (await mirror.get(TAG)).cache == "STALE"
    clock.advance(10)
    assert (await mirror.get(TAG)).status == 503


@pytest.mark.parametrize("code", [401, 403])
async def test_denied_and_then_an_outage(hub, mirror, clock, code):
    """What upstream has ceased to grant does not come back in an outage, but when upstream grants it again."""
    await pulled(hub, mirror)
    clock.advance(61)
    manifests_fail(hub, Status(code))
    assert (await mirror.get(TAG)).status == 404
    clock.advance(61)
    hub.clear_script()
    manifests_fail(hub, Status(503))
    assert (await mirror.get(TAG)).status == 503
    clock.advance(61)
    hub.clear_script()
    assert (await mirror.get(TAG)).cache == "REVALIDATED"
    clock.advance(61)
    manifests_fail(hub, Status(503))
    assert (await mirror.get(TAG)).cache == "STALE"


async def test_stale_across_a_restart(hub, mirror, clock):
    """A mirror that starts while upstream is down serves what its store has, stale and fresh."""
    image = await pulled(hub, mirror)
    await hub.stop()
    async with MirrorUnderTest(hub, mirror.store_path, tags={"ttl": "0s"}) as other:
        answer = await other.get(TAG)
        assert (answer.cache, answer.body) == ("STALE", image.raw)
        for blob in [image.config, *image.layers]:
            assert (await other.get(f"/v2/{APP}/blobs/{blob.digest}")).sha256 == blob.digest


async def test_nothing_held_and_rate_limited(hub, mirror):
    """Without anything to serve, the pull limit is told as what it is, with upstream's own time to wait."""
    hub.add_image(APP, "1")
    manifests_fail(hub, RateLimited(retry_after=77))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "TOOMANYREQUESTS")
    assert answer.headers["Retry-After"] == "77"


async def test_clock_set_back(hub, mirror, clock):
    """After the clock was set back a tag is checked, not believed for years, and is still there in an outage."""
    await pulled(hub, mirror)
    # As after a restart: nothing in memory.
    mirror.store.generation.change()
    clock.advance(-10 * 365 * DAY)
    hub.reset_counters()
    assert (await mirror.get(TAG)).cache == "REVALIDATED"
    assert hub.count("HEAD", "manifest") == 1


async def test_full_disk_does_not_make_stale(hub, mirror, clock, monkeypatch):
    """A manifest that cannot be stored is passed through: no space is not an error."""
    from mirror.errors import StorageError

    def full(*_):
        raise StorageError("no space", "full")

    image = hub.add_image(APP, "1", layers=[os.urandom(10)])
    monkeypatch.setattr(type(mirror.store.files), "put", full)
    for _ in range(2):
        answer = await mirror.get(TAG)
        assert (answer.status, answer.cache, answer.body) == (200, "BYPASS", image.raw)
