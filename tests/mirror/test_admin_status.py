"""The admin address: health, readiness, metrics."""

import asyncio
import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakehub import NoHeaders, RateLimited, Rule, Status
from tests.support.names import APP, TAG
from tests.support.waiting import LIMIT, eventually
from tests.support.wire import ask, request

# design: Interfaces, Metrics; those that this version has.
FAMILIES = {
    "requests": ("counter", {"registry", "kind", "outcome", "status"}),
    "request_duration_seconds": ("histogram", {"kind", "outcome"}),
    "time_to_first_byte_seconds": ("histogram", {"kind", "outcome"}),
    "served_bytes": ("counter", {"registry", "outcome"}),
    "upstream_requests": ("counter", {"registry", "upstream", "kind", "status"}),
    "upstream_bytes": ("counter", {"registry", "upstream"}),
    "upstream_duration_seconds": ("histogram", None),
    "upstream_up": ("gauge", {"registry", "upstream"}),
    "upstream_ratelimit_limit": ("gauge", {"registry"}),
    "upstream_ratelimit_remaining": ("gauge", {"registry"}),
    "downloads_in_progress": ("gauge", set()),
    "download_readers": ("gauge", set()),
    "downloads": ("counter", {"result"}),
    "prefetched_blobs": ("counter", {"result"}),
    "stale_served": ("counter", {"registry", "reason"}),
    "build_info": ("gauge", {"version"}),
}


async def admin(mirror, path):
    url, plain = f"http://127.0.0.1:{mirror.admin_port}{path}", {"Accept-Encoding": "identity"}
    async with mirror.session.get(url, headers=plain) as response:
        return response.status, response.headers, await response.text()


async def families(mirror):
    _, _, text = await admin(mirror, "/metrics")
    return {family.name.removeprefix("registry_mirror_"): family for family in text_string_to_metric_families(text)}


async def some_traffic(hub, mirror, clock):
    """One of everything: cold, warm, revalidated, stale, refused."""
    image = hub.add_image(APP, "1")
    for _ in range(2):
        await mirror.get(TAG)
        for blob in [image.config, *image.layers]:
            await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        await mirror.idle()
    await mirror.get(f"/v2/{APP}/tags/list")
    await mirror.get(f"/v2/{APP}/referrers/{image.digest}")
    await mirror.get("/v2/library/none/manifests/1")
    clock.advance(61)
    await mirror.get(TAG)
    clock.advance(61)
    hub.script(Rule(kind="manifest", method="HEAD", times=2), Status(503))
    assert (await mirror.get(TAG)).cache == "STALE"
    return image


async def test_healthz(hub, mirror):
    """Alive, whatever upstream does."""
    await hub.stop()
    assert (await admin(mirror, "/healthz"))[0] == 200


async def test_readyz(hub, mirror):
    """Ready while the store can be written; upstream's state is told and does not matter."""
    status, headers, text = await admin(mirror, "/readyz")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "application/json")
    body = json.loads(text)
    assert (body["ready"], body["draining"], body["store_writable"], body["credentials"]) == (True, False, True, {})
    assert body["upstreams"] == {f"docker.io {hub.registry_host}": "not asked yet"}
    hub.add_image(APP, "1")
    await mirror.get(TAG)
    assert list(json.loads((await admin(mirror, "/readyz"))[2])["upstreams"].values()) == ["up"]
    await hub.stop()
    await mirror.get(f"/v2/{APP}/manifests/2")
    status, _, text = await admin(mirror, "/readyz")
    assert status == 200
    assert next(iter(json.loads(text)["upstreams"].values())).startswith("failing: cannot connect")


async def test_store_not_writable(hub, mirror):
    """Not ready once nothing can be written any more, and ready again as soon as it can."""
    directory = mirror.store_path / "tmp"
    directory.rename(mirror.store_path / "moved")
    status, _, text = await admin(mirror, "/readyz")
    assert (status, json.loads(text)["store_writable"]) == (503, False)
    assert (await admin(mirror, "/healthz"))[0] == 200
    (mirror.store_path / "moved").rename(directory)
    assert (await admin(mirror, "/readyz"))[0] == 200
    assert list(directory.iterdir()) == []


async def test_draining(hub, mirror):
    """Not ready once it has been told to stop, while what is under way goes on."""
    image = hub.add_image(APP, "1")
    held = NoHeaders()
    hub.script(Rule(kind="manifest"), held)
    pulling = asyncio.create_task(mirror.get(TAG))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    mirror.stop()
    await eventually(lambda: admin(mirror, "/readyz"), holds=lambda answer: answer[0] == 503)
    held.release()
    assert (await pulling).body == image.raw


async def test_families_and_labels(hub, mirror, clock):
    """The metrics are those of the contract, with its types and labels, each with a help text."""
    await some_traffic(hub, mirror, clock)
    found = await families(mirror)
    for name, (kind, labels) in FAMILIES.items():
        family = found[name]
        assert family.type == kind
        assert family.documentation
        assert family.samples
        for sample in family.samples:
            assert labels is None or set(sample.labels) - {"le"} == labels


async def test_labels_are_bounded(hub, mirror, clock):
    """No label holds a repository, a tag or a digest, nor anything else that clients choose."""
    image = await some_traffic(hub, mirror, clock)
    for method in ("GET", "FROB", "POST"):
        await ask(mirror.port, request(f"/v2/evil-name/manifests/{'t' * 50}?ns=evil.example", method=method))
    await mirror.get("/v2/evil-name/blobs/sha256:nonsense", headers={"X-Request-Id": "evil-name"})
    _, _, text = await admin(mirror, "/metrics")
    for chosen in (APP, "evil", "ttttt", image.digest[7:], "sha256", "FROB"):
        assert chosen not in text


async def test_requests_are_counted(hub, mirror, clock):
    """Each request is counted once, with its kind, outcome and status."""
    await some_traffic(hub, mirror, clock)
    counted = {
        (sample.labels["kind"], sample.labels["outcome"], sample.labels["status"]): sample.value
        for sample in (await families(mirror))["requests"].samples
        if sample.name.endswith("_total") and sample.value
    }
    assert counted == {
        ("manifest", "MISS", "200"): 1,
        ("manifest", "HIT", "200"): 1,
        ("manifest", "REVALIDATED", "200"): 1,
        ("manifest", "STALE", "200"): 1,
        ("manifest", "ERROR", "404"): 1,
        ("blob", "MISS", "200"): 2,
        ("blob", "HIT", "200"): 2,
        ("tags", "MISS", "200"): 1,
        ("referrers", "MISS", "200"): 1,
    }
    assert await mirror.metric("request_duration_seconds_count", kind="blob", outcome="HIT") == 2
    assert await mirror.metric("time_to_first_byte_seconds_count", kind="blob", outcome="HIT") == 2
    assert await mirror.metric("time_to_first_byte_seconds_count", kind="manifest", outcome="STALE") == 1


async def test_bytes_are_counted(hub, mirror):
    """Bytes to clients and from upstream are those of bodies; HEAD, 304 and 416 have none, a range has its own."""
    blob = hub.add_synthetic_blob(APP, 500_000)
    path = f"/v2/{APP}/blobs/{blob.digest}"
    await mirror.get(path)
    await mirror.idle()
    assert await mirror.metric("upstream_bytes_total", registry="docker.io", upstream=hub.registry_host) == blob.size
    assert await mirror.metric("served_bytes_total", registry="docker.io", outcome="MISS") == blob.size
    await mirror.get(path, headers={"Range": "bytes=100-199"})
    await mirror.get(path, headers={"Range": "bytes=9999999-"})
    await mirror.head(path)
    assert await mirror.metric("served_bytes_total", outcome="HIT") == 100
    assert await mirror.metric("requests_total", kind="blob", status="206") == 1
    assert await mirror.metric("requests_total", kind="blob", status="416") == 1
    assert await mirror.metric("upstream_bytes_total") == blob.size
    assert await mirror.metric("downloads_total", result="committed") == 1
    assert await mirror.metric("downloads_in_progress") == 0


async def test_downloads_in_progress(hub, mirror):
    """What is under way shows while it is, with its readers."""
    blob = hub.add_synthetic_blob(APP, 500_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=200_000)
    pulling = [asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{blob.digest}")) for _ in range(3)]
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    await eventually(lambda: mirror.metric("download_readers"), holds=lambda seen: seen >= 3)
    assert await mirror.metric("downloads_in_progress") == 1
    gate.release()
    outcomes = sorted(answer.cache for answer in await asyncio.gather(*pulling))
    assert outcomes == ["JOINED", "JOINED", "MISS"]
    await mirror.idle()
    assert await mirror.metric("download_readers") == 0


async def test_upstream_is_watched(hub, mirror):
    """Requests upstream, whether it is up, and its pull limit are there to be seen."""
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 77
    hub.add_image(APP, "1")
    await mirror.get(TAG)
    up = {"registry": "docker.io", "upstream": hub.registry_host}
    assert await mirror.metric("upstream_requests_total", **up, kind="manifest", status="200") == 1
    assert await mirror.metric("upstream_up", **up) == 1
    assert await mirror.metric("upstream_ratelimit_limit", registry="docker.io") == 100
    assert await mirror.metric("upstream_ratelimit_remaining", registry="docker.io") == 76
    hub.script(Rule(kind="manifest", times=None), RateLimited())
    await mirror.get(f"/v2/{APP}/manifests/2")
    assert await mirror.metric("upstream_requests_total", **up, kind="manifest", status="429") == 1
    assert await mirror.metric("upstream_up", **up) == 0


async def test_clients_show_that_an_upstream_that_is_down_is_needed(hub, mirror, clock):
    """In a lasting outage no request to upstream is counted, so an alert has to go by those of clients that are no hits."""
    hub.script(Rule(times=None, challenge=True), Status(503))
    for number in range(4):
        assert (await mirror.get(f"/v2/{APP}/manifests/{number}")).status == 503
    clock.advance(6)
    asked, before = await mirror.metric("upstream_requests_total"), await mirror.metric("requests_total", outcome="ERROR")
    for number in range(8):
        assert (await mirror.get(f"/v2/{APP}/manifests/later-{number}")).status == 503
    assert await mirror.metric("upstream_up", registry="docker.io") == 0
    assert await mirror.metric("requests_total", outcome="ERROR") == before + 8
    # The clock has passed the prober's pause, so one request is a trial.
    assert await mirror.metric("upstream_requests_total") <= asked + 1


async def test_answers_do_not_make_upstream_down(hub, mirror):
    """A 404 is an answer of an upstream that is up."""
    hub.add_image(APP, "other")
    await mirror.get(TAG)
    assert await mirror.metric("upstream_up", registry="docker.io") == 1


@pytest.mark.parametrize("path", ["/", "/x", "/v2/", "/metrics/x", "/api/v1/../../etc"])
async def test_unknown_paths(mirror, path):
    """There is nothing else at this address, and nothing of the registry's."""
    if path != "/":
        assert (await admin(mirror, path))[0] == 404
    reply = await ask(mirror.admin_port, request(path, method="POST"))
    assert reply.status in (404, 405)


async def test_metrics_format(mirror):
    """The text format of Prometheus, by its content type and for its parser."""
    _, headers, text = await admin(mirror, "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert all(name.startswith(("registry_mirror_", "process_")) for name in names)
