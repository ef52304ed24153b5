"""Traces: a pull is a span with its requests to upstream and its waits, part of the client's trace."""

import asyncio
import importlib.util
import subprocess
import sys

import pytest

from mirror.config.model import Config
from mirror.errors import ConfigurationError
from tests.fakehub import Headers, Rule, Status
from tests.mirror.commands import command
from tests.support.collector import Collector
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.ports import free_port
from tests.support.waiting import SOON, eventually
from tests.workers.cluster import Cluster

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SERVER, CLIENT = 2, 3


@pytest.fixture
async def collector(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    async with Collector() as collector:
        yield collector


@pytest.fixture
async def traced(hub, tmp_path, collector):
    """A mirror that sends its spans to the collector."""
    async with MirrorUnderTest(hub, tmp_path / "store", tracing={"otlp_endpoint": collector.endpoint}) as mirror:
        yield mirror


async def test_cold_pull(hub, traced, collector):
    """Manifest and blob: the client's trace, the mirror's span in it, and below that each request to upstream."""
    image = hub.add_image(APP, "1")
    blob = f"/v2/{APP}/blobs/{image.layers[0].digest}"
    assert (await traced.get(TAG, headers={**PARENT, "X-Request-Id": "mine"})).cache == "MISS"
    assert (await traced.get(f"{blob}?secret=hunter2", headers=PARENT)).cache == "MISS"
    await eventually(lambda: collector.named("receive blob"))
    await eventually(lambda: len([span for span in collector.spans if span.kind == SERVER]) == 2)

    manifest, blob_span = (span for span in collector.spans if span.kind == SERVER)
    assert (manifest.name, manifest.trace, manifest.parent) == ("GET manifest", TRACE, CALLER)
    said = {
        "http.request.method": "GET",
        "url.path": TAG,
        "http.response.status_code": 200,
        "http.response.body.size": len(image.raw),
        "client.address": "127.0.0.1",
        "registry_mirror.request": "mine",
        "registry_mirror.registry": "docker.io",
        "registry_mirror.repository": APP,
        "registry_mirror.reference": "1",
        "registry_mirror.outcome": "MISS",
    }
    assert said.items() <= manifest.attributes.items()
    assert 0 < manifest.attributes["registry_mirror.first_byte_s"] < SOON
    assert manifest.resource["service.name"] == "registry-mirror"
    assert (blob_span.name, blob_span.trace) == ("GET blob", TRACE)

    sent = [span for span in collector.spans if span.kind == CLIENT]
    assert {span.parent for span in sent} == {manifest.own, blob_span.own}
    asked = [(span.name, span.attributes["http.response.status_code"]) for span in sent if span.parent == manifest.own]
    assert asked == [("GET manifest", 401), ("GET token", 200), ("GET manifest", 200)]
    asked = [(span.name, span.attributes["http.response.status_code"]) for span in sent if span.parent == blob_span.own]
    assert asked == [("GET blob", 307), ("GET blob redirected", 200)]
    assert all("hunter2" not in repr(span) and "Signature" not in repr(span) for span in collector.spans)


async def test_passed_on_to_the_upstream_only(hub, traced, collector):
    """The upstream gets the trace with the span of its own request; the token host and the CDN get nothing of it."""
    image = hub.add_image(APP, "1")
    await traced.get(TAG, headers={**PARENT, "tracestate": "vendor=secret", "baggage": "user=1"})
    await traced.get(f"/v2/{APP}/blobs/{image.layers[0].digest}", headers=PARENT)
    await eventually(lambda: collector.named("receive blob"))
    await eventually(lambda: len([span for span in collector.spans if span.kind == SERVER]) == 2)
    own = {span.own for span in collector.spans if span.kind == CLIENT}
    for seen in hub.find():
        given = seen.headers.get("traceparent")
        assert (given is not None) == (seen.host == "registry"), seen
        assert given is None or (given[3:35] == TRACE and given[36:52] in own and given.endswith("-01"))
        assert "tracestate" not in seen.headers
        assert "baggage" not in seen.headers


async def test_waits(hub, traced, collector):
    """A client that joins a download of another shows that it waited, and asked nobody."""
    image = hub.add_image(APP, "1")
    await traced.get(TAG)
    blob = f"/v2/{APP}/blobs/{image.layers[0].digest}"
    gate = hub.gate(Rule(kind="blob", host="cdn"), 0)
    first = asyncio.create_task(traced.get(blob))
    await asyncio.wait_for(gate.reached.wait(), 45)
    second = asyncio.create_task(traced.get(blob, headers=PARENT))
    await eventually(lambda: traced.downloads.readers == 2)
    gate.release()
    assert {(await first).cache, (await second).cache} == {"MISS", "JOINED"}
    await eventually(lambda: any(span.trace == TRACE and span.kind == SERVER for span in collector.spans))
    joined = [span for span in collector.spans if span.trace == TRACE]
    assert {span.name for span in joined} <= {"GET blob", "wait for the download"}
    assert next(span for span in joined if span.kind == SERVER).attributes["registry_mirror.outcome"] == "JOINED"


async def test_failure(hub, traced, collector):
    """An upstream that fails marks the request to it and the client's as failed."""
    hub.script(Rule(kind="manifest", times=None), Status(503))
    assert (await traced.get(TAG, headers=PARENT)).status == 503
    await eventually(lambda: [span for span in collector.named("GET manifest") if span.kind == SERVER])
    (server,) = (span for span in collector.named("GET manifest") if span.kind == SERVER)
    assert (server.failed, server.attributes["registry_mirror.outcome"]) == (True, "ERROR")


async def test_hits(hub, traced, collector):
    """A hit has a span if its request belongs to a trace; one that is answered inline has none, and stays as fast."""
    hub.add_image(APP, "1")
    await traced.get(TAG)
    for _ in range(3):
        assert (await traced.get(TAG)).cache == "HIT"
    assert len(traced.inline_heads) == 1
    for number in range(3):
        assert (await traced.get(TAG, headers={"traceparent": f"00-{TRACE}-{number + 1:016x}-01"})).cache == "HIT"
    assert len(traced.inline_heads) == 1
    await eventually(lambda: len([span for span in collector.spans if span.trace == TRACE]) == 3)
    outcomes = [span.attributes["registry_mirror.outcome"] for span in collector.spans if span.kind == SERVER]
    # The first hit is the one that makes the others inline.
    assert outcomes == ["MISS", *["HIT"] * 4]


@pytest.mark.parametrize("given", ["", "x", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01", "é" * 500])
async def test_malformed_parent(hub, traced, collector, given):
    """A traceparent that is none begins a trace of its own."""
    assert (await traced.get("/v2/", headers={"traceparent": given})).status == 200
    await eventually(lambda: collector.spans)
    (span,) = collector.spans
    assert (span.trace != TRACE, span.parent) == (True, "")


@pytest.mark.parametrize("header", ["Docker-Content-Digest", "Location", "WWW-Authenticate"])
async def test_upstream_that_sends_no_text(hub, traced, collector, header):
    """Bytes that are no UTF-8 cost no span: neither that of their request nor those that are sent with it."""
    hub.auth = "none"
    hub.add_image(APP, "1")
    wrong = {header: "http://\xff.example/\xff\xfe"}
    hub.script(Rule(kind="manifest", times=None), Status(307, wrong) if header == "Location" else Headers(wrong))
    await traced.get(TAG)
    assert (await traced.get("/v2/")).status == 200
    await eventually(lambda: collector.named("GET ping"))
    assert [span for span in collector.named("GET manifest") if span.kind == SERVER]


async def test_not_sampled(hub, traced, collector):
    """A caller that does not sample its trace is not overruled, and upstream is told so."""
    hub.add_image(APP, "1")
    await traced.get(TAG, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert all(seen.headers["traceparent"].endswith("-00") for seen in hub.find(host="registry"))
    await traced.get("/v2/")
    await eventually(lambda: collector.named("GET ping"))
    assert len(collector.spans) == 1


async def test_collector_that_refuses(hub, tmp_path, collector, log):
    """It is logged once, and once when it is over; no pull notices."""
    hub.add_image(APP, "1")
    collector.script = [400, 400]
    async with MirrorUnderTest(hub, tmp_path / "store", tracing={"otlp_endpoint": f"{collector.endpoint}/v1/traces"}) as mirror:
        for count in (1, 2, 3):
            assert (await mirror.get("/v2/")).status == 200
            await collector.got(count)
        await eventually(lambda: "spans_sent_again" in [event["event"] for event in log])
    assert [event["event"] for event in log if event["event"].startswith("spans_")] == ["spans_not_sent", "spans_sent_again"]
    assert {request.line for request in collector.received} == {"POST /v1/traces HTTP/1.1"}


@pytest.mark.parametrize("dead", ["silent", "refused"])
async def test_dead_collector(hub, tmp_path, collector, dead):
    """Pulls go on as without it, more spans than may wait are dropped, and the stop waits a moment at most."""
    hub.add_image(APP, "1")
    collector.script = ["stall"] * 10_000
    endpoint = collector.endpoint if dead == "silent" else f"http://127.0.0.1:{free_port()}"
    async with MirrorUnderTest(hub, tmp_path / "store", tracing={"otlp_endpoint": endpoint}) as mirror:
        assert (await mirror.get(TAG)).cache == "MISS"
        for _ in range(30):
            await asyncio.gather(*(mirror.get(TAG, headers=PARENT) for _ in range(100)))
        assert (await mirror.get(TAG)).cache == "HIT"
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < SOON


async def test_off(hub, mirror):
    """Without a collector the client's trace goes nowhere."""
    hub.add_image(APP, "1")
    assert (await mirror.get(TAG, headers=PARENT)).cache == "MISS"
    assert all("traceparent" not in seen.headers for seen in hub.find())


def test_nothing_is_imported_when_off():
    """Neither at the start nor by what serves."""
    names = "[name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'google', 'requests')]"
    code = f"import sys, mirror.cli, mirror.service.run; print({names})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout.strip() == b"[]"


async def test_workers(hub, tmp_path, collector):
    """Each worker sends its own spans: threads do not outlive a fork."""
    hub.add_image(APP, "1")
    async with Cluster(hub, tmp_path, tracing={"otlp_endpoint": collector.endpoint}) as cluster:
        workers = cluster.workers()
        for worker in workers:
            pull = await cluster.pull(TAG, worker)
            await pull.rest()
        await eventually(lambda: {span.resource["process.pid"] for span in collector.spans} == set(workers))


async def test_reload_tells_that_a_restart_is_needed(hub, mirror, log):
    """The collector cannot be changed while the mirror runs."""
    await mirror.reload(tracing={"otlp_endpoint": "http://127.0.0.1:4318"})
    (event,) = (event for event in log if event["event"] == "configuration_reloaded")
    assert event["needs_restart"] == ["tracing"]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("ftp://x", "must be a URL"),
        ("http://x/?a=b", "must not contain a query"),
        ("http://user:secret@x", "must not contain credentials"),
    ],
)
async def test_wrong_endpoint(tmp_path, value, part):
    (tmp_path / "mirror.yaml").write_text(f"tracing: {{otlp_endpoint: '{value}'}}")
    code, _, complaint = await command("check-config", directory=tmp_path)
    assert (code, "tracing.otlp_endpoint: " in complaint, part in complaint, "secret" in complaint) == (2, True, True, False)


def test_extra_is_missing(monkeypatch):
    """The key of the configuration is named, and how to install what it requires."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises((ConfigurationError, ValueError), match=r"registry-mirror\[otel\]"):
        Config(tracing={"otlp_endpoint": "http://127.0.0.1:4318"})
