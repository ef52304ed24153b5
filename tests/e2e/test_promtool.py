"""Prometheus's own tool finds nothing to say about the metrics, and the rules do what they are for."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.harness.process import find_command
from tests.fakehub import Rule, Status
from tests.support.mirrors import MirrorUnderTest

TAG = "/v2/library/app/manifests/1"
MONITORING = Path(__file__).parents[2] / "monitoring"

pytestmark = pytest.mark.e2e


async def test_promtool(hub, tmp_path):
    """`promtool check metrics` accepts what a mirror with some traffic shows, without a remark."""
    image = hub.add_image("library/app", "1")
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for path in (TAG, TAG, f"/v2/library/app/blobs/{image.layers[0].digest}", "/v2/library/app/tags/list"):
            assert (await mirror.get(path)).status == 200
        hub.script(Rule(kind="manifest"), Status(503))
        await mirror.get("/v2/library/app/manifests/2")
        url, plain = f"http://127.0.0.1:{mirror.admin_port}/metrics", {"Accept-Encoding": "identity"}
        async with mirror.session.get(url, headers=plain) as response:
            text = await response.read()
    pipe = asyncio.subprocess.PIPE
    tool = await asyncio.create_subprocess_exec("promtool", "check", "metrics", stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(tool.communicate(text), 20)
    assert (tool.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize("tests", sorted((MONITORING / "tests").glob("*.yaml")), ids=lambda file: file.stem)
def test_rules(tests):
    """`promtool test rules`: alerts fire on their faults only, and what is recorded is right."""
    _promtool("test", "rules", tests)


def test_scrape_configuration():
    """`promtool check config` accepts the example, with the rules that it names."""
    _promtool("check", "config", MONITORING / "prometheus.yml")


def test_queries_of_the_dashboard(tmp_path):
    """Prometheus understands the query of each panel."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")} for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    _promtool("check", "rules", file)


def _promtool(*arguments):
    done = subprocess.run([find_command("promtool"), *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
