"""A real Prometheus scrapes a mirror by the shipped configuration, and its rules say what the mirror and upstream counted."""

import json
import math

import pytest

from tests.e2e.harness.mixed_load import MixedLoad
from tests.e2e.harness.prometheus import MONITORING, Prometheus
from tests.fakehub import FakeHub
from tests.support.mirrors import MirrorUnderTest
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

IMAGES, HITS_EACH = 4, 3


async def test_rules_over_a_real_mirror(hub, tmp_path):
    """The recorded hit ratio is that of the requests and of upstream's own count; every rule works, and no alert fires."""
    paths = []
    for number in range(IMAGES):
        hub.add_image("library/app", str(number))
        paths.append(f"/v2/library/app/manifests/{number}")
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        prometheus = Prometheus(tmp_path, mirror.session, mirror.admin_port)
        try:
            # A rate needs a value from before.
            await eventually(lambda: prometheus.value("sum(registry_mirror_requests_total)"), holds=lambda value: value == 0)
            for path in paths * (1 + HITS_EACH):
                assert (await mirror.get(path)).status == 200
            await eventually(
                lambda: prometheus.value("instance:registry_mirror_hit_requests:ratio_rate5m"),
                holds=lambda ratio: ratio == pytest.approx(HITS_EACH / (1 + HITS_EACH)),
            )
            counted = await prometheus.value('sum(registry_mirror_upstream_requests_total{kind="manifest",status="200"})')
            assert counted == hub.count(kind="manifest", status=200) == IMAGES
            await eventually(prometheus.health, holds=lambda health: health == {"ok"})
            assert (await prometheus.api("query", query='ALERTS{alertstate="firing"}'))["result"] == []
        finally:
            prometheus.program.kill()


async def test_dashboard_over_mixed_load(hub, tmp_path):
    """The query of every panel has a figure once a mirror of two workers was used in every way."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    found = {f"{panel['title']}: {target['expr']}" for panel in panels for target in panel.get("targets", ())}
    # Without a cluster there are no calls to Redis, and no upstream is shut by the word of other nodes.
    clustered = ("registry_mirror_cluster_calls", "registry_mirror_cluster_upstream_shut")
    queries = {query for query in found if not any(family in query for family in clustered)}
    async with FakeHub() as second:
        load = MixedLoad(hub, second, tmp_path, account=True)
        async with load.cluster:
            prometheus = Prometheus(tmp_path, load.cluster.session, load.cluster.admin_port)
            try:
                await eventually(lambda: prometheus.value("sum(registry_mirror_requests_total)"), holds=lambda value: value == 0)
                await load.run()
                empty = await eventually(lambda: without_figures(prometheus, queries), holds=lambda found: not found)
            finally:
                prometheus.program.kill()
    assert empty == set()


async def without_figures(prometheus: Prometheus, queries: set[str]) -> set[str]:
    """The queries that give nothing, or nothing but divisions by zero."""
    found = set()
    for query in queries:
        text = query.partition(": ")[2].replace("$job", ".+").replace("$instance", ".+").replace("$__rate_interval", "2m")
        series = (await prometheus.api("query", query=text)).get("result", [])
        if all(math.isnan(float(one["value"][1])) for one in series):
            found.add(query)
    return found
