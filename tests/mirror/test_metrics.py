"""What /metrics shows of one process, and in which form."""

import gzip
import os
import time
from unittest import mock

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from mirror.errors import ConfigurationError
from tests.fakehub import NoHeaders, Rule, Status
from tests.support import families
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, blob_path


@pytest.fixture
async def counted(hub, tmp_path):
    """A mirror with an account and some traffic."""
    hub.users["me"] = "secret"
    password = tmp_path / "password"
    password.write_text("secret")
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 50
    layer = hub.add_image(APP, "1", layers=[os.urandom(100_000)]).layers[0]
    registries = {
        "docker.io": {
            "upstreams": [hub.url],
            "token_hosts": [hub.token_host],
            "username": "me",
            "password_file": str(password),
        }
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        for path in (TAG, TAG, blob_path(layer), f"/v2/{APP}/tags/list"):
            await mirror.get(path)
        yield mirror


async def scrape(mirror, **headers):
    """The response to a scrape, and its body."""
    url = f"http://127.0.0.1:{mirror.admin_port}/metrics"
    async with mirror.session.get(url, headers={"Accept-Encoding": "identity", **headers}) as response:
        return response, await response.read()


async def test_families(counted):
    """Every family that is promised is there with its labels, and no other; no time of creation beside any counter."""
    _, body = await scrape(counted)
    families.check(body.decode())
    assert b"_created" not in body


async def test_errors_have_an_outcome_of_their_own(hub, counted):
    """A request that is answered with an error is no MISS."""
    before = await counted.metric("requests_total", outcome="MISS")
    hub.script(Rule(kind="manifest", times=None), Status(503))
    assert (await counted.get(f"/v2/{APP}/manifests/2")).status == 503
    assert await counted.metric("requests_total", outcome="ERROR", status="503") == 1
    assert await counted.metric("requests_total", outcome="MISS") == before


async def test_series_begin_at_zero(hub, tmp_path):
    """Prometheus sees the first increase of a counter only if there was a value before it."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        seen = await mirror.metrics()
    at_zero = {name.removeprefix("registry_mirror_") for name, value in seen.items() if value == 0}
    upstream = hub.url.partition("://")[2]
    assert {
        'requests_total{kind="manifest",outcome="STALE",registry="docker.io",status="200"}',
        'requests_total{kind="blob",outcome="ERROR",registry="docker.io",status="503"}',
        'requests_total{kind="manifest",outcome="ERROR",registry="docker.io",status="404"}',
        'requests_total{kind="blob",outcome="ERROR",registry="docker.io",status="499"}',
        'requests_total{kind="blob",outcome="HIT",registry="docker.io",status="206"}',
        f'upstream_requests_total{{kind="manifest",registry="docker.io",status="429",upstream="{upstream}"}}',
        'download_resumes_total{reason="cut"}',
        'served_bytes_total{outcome="HIT",registry="docker.io"}',
        'stale_served_total{reason="rate_limited",registry="docker.io"}',
        f'upstream_bytes_total{{registry="docker.io",upstream="{upstream}"}}',
        f'upstream_requests_total{{kind="manifest",registry="docker.io",status="200",upstream="{upstream}"}}',
        'refused_total{reason="host"}',
        'downloads_total{result="digest_mismatch"}',
    } <= at_zero


async def test_negotiation(counted):
    """A scraper gets the format and the compression that it names, and the plain text format otherwise."""
    response, plain = await scrape(counted)
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Content-Encoding" not in response.headers
    response, packed = await scrape(counted, **{"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed).startswith(plain[:100])
    response, body = await scrape(counted, Accept="application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert "registry_mirror_requests" in {family.name for family in parse_openmetrics(body.decode())}


async def test_state(counted, monkeypatch):
    """Readiness, the free bytes of the disk, and a reload that was refused until one is accepted."""
    disk = os.statvfs(counted.store_path)
    free = await counted.metric("storage_free_bytes")
    monkeypatch.setattr(counted.store.quota, "min_free", 4096)
    assert await counted.metric("storage_min_free_bytes") == 4096
    assert abs(free - disk.f_bavail * disk.f_frsize) < disk.f_blocks * disk.f_frsize / 2
    assert (await counted.metric("ready"), await counted.metric("config_reload_ok")) == (1, 1)
    with mock.patch("mirror.service.mirror.load", side_effect=ConfigurationError(["tags.ttl: no"])):
        await counted.mirror.reload()
    assert await counted.metric("config_reload_ok") == 0
    await counted.reload()
    assert await counted.metric("config_reload_ok") == 1
    monkeypatch.setattr(type(counted.store), "is_writable", lambda _: False)
    assert await counted.metric("ready") == 0


async def test_requests_without_an_answer_are_counted(hub, mirror, monkeypatch):
    """Upstream has had a request that was given up: for another one's answer, or at the end of the time for all upstreams."""
    hub.add_image(APP, "1")
    mirror.set_limits(hedge=0.05)
    hub.script(Rule(kind="manifest", reference="1"), lost := NoHeaders())
    assert (await mirror.get(TAG)).status == 200
    assert [seen.status for seen in hub.find(kind="manifest") if seen.status != 401] == [0, 200]
    assert await mirror.metric("upstream_requests_total", kind="manifest", status="200") == 1
    assert await mirror.metric("upstream_requests_total", kind="manifest", status="cancelled") == 1
    monkeypatch.setattr("mirror.upstream.registry._TIMEOUT_S", 0.3)
    hub.script(Rule(kind="tags", times=None), silent := NoHeaders())
    assert (await mirror.get(f"/v2/{APP}/tags/list")).status == 503
    assert hub.count(kind="tags", status=0) == 2
    assert await mirror.metric("upstream_requests_total", kind="tags", status="timeout") == 2
    lost.release()
    silent.release()


async def test_statuses_of_upstream_are_bounded(hub, mirror):
    """An upstream that makes up a status for each answer makes no series for each."""
    statuses = [*range(430, 451), *range(570, 590)]
    for number, status in enumerate(statuses):
        hub.script(Rule(kind="manifest", reference=str(number), times=None), Status(status))
        await mirror.get(f"/v2/library/app{number}/manifests/{number}")
    found = {name for name in await mirror.metrics() if "upstream_requests_total" in name and 'status="5' in name}
    assert {name.partition('status="')[2][:3] for name in found} == {"503", "5xx"}
    assert await mirror.metric("upstream_requests_total", status="4xx") > 0


async def test_pulls_left_are_forgotten(hub, mirror, monkeypatch):
    """After the window of the pull limit nobody knows how many pulls are left, until upstream says so."""
    hub.add_image(APP, "1")
    hub.ratelimit_remaining, hub.ratelimit_window = 1, 3600
    await mirror.get(TAG)
    assert await mirror.metric("upstream_ratelimit_remaining") == 0
    now = time.time()
    monkeypatch.setattr("mirror.metrics.time.time", lambda: now + 3601)
    assert not any("upstream_ratelimit_remaining{" in name for name in await mirror.metrics())
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/status") as response:
        assert [one["pulls_left"] for one in (await response.json())["upstreams"]] == [None]
    hub.ratelimit_remaining = 100
    await mirror.head(f"/v2/{APP}/manifests/2")
    assert await mirror.metric("upstream_ratelimit_limit") > 0
