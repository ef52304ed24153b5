"""A real Prometheus scrapes a mirror by the shipped configuration, and its rules say what the mirror and upstream counted."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e.harness.process import Program
from tests.support.mirrors import MirrorUnderTest
from tests.support.ports import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

MONITORING = Path(__file__).parents[2] / "monitoring"
IMAGES, HITS_EACH = 4, 3


class Prometheus:
    """A Prometheus with the shipped rules that scrapes one mirror five times a second."""

    def __init__(self, directory: Path, mirror: MirrorUnderTest) -> None:
        self._session = mirror.session
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1/"
        for file in MONITORING.glob("*.yaml"):
            shutil.copy(file, directory)
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{mirror.admin_port}"]}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        arguments = [f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
        self.program = Program(["prometheus", *arguments], directory / "prometheus.log")

    async def api(self, path: str, **query: str) -> dict:
        """The data of an answer of the HTTP API; nothing while Prometheus starts."""
        try:
            async with self._session.get(self._url + path, params=query, headers={"Accept-Encoding": "identity"}) as response:
                return json.loads(await response.text())["data"] if response.status == 200 else {}
        except OSError:
            return {}

    async def value(self, query: str) -> float | None:
        """The only value of an instant query; None without one."""
        found = (await self.api("query", query=query)).get("result", [])
        return float(found[0]["value"][1]) if found else None

    async def health(self) -> set[str]:
        """What has become of the rules."""
        groups = (await self.api("rules"))["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}


async def test_rules_over_a_real_mirror(hub, tmp_path):
    """The recorded hit ratio is that of the requests and of upstream's own count; every rule works, and no alert fires."""
    paths = []
    for number in range(IMAGES):
        hub.add_image("library/app", str(number))
        paths.append(f"/v2/library/app/manifests/{number}")
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        prometheus = Prometheus(tmp_path, mirror)
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
