"""The alerts fire when they should, and alerts and dashboard ask for metrics that exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mirror.metrics import Metrics
from tests.e2e.harness.process import find_command

pytestmark = pytest.mark.e2e

MONITORING = Path(__file__).parents[2] / "monitoring"
ALERTS, DASHBOARD = MONITORING / "alerts.yaml", MONITORING / "dashboard.json"

WHO = 'job="mirror", instance="m1"'
UPSTREAM = f'{WHO}, registry="docker.io", upstream="registry-1.docker.io:443"'
ASKED = {f'upstream_requests_total{{{UPSTREAM}, kind="manifest", status="200"}}': "0+1x60"}
# What Prometheus sees, a sample a minute for an hour, by the alert that has to fire then.
TROUBLES: dict[str, dict[str, str]] = {
    "RegistryMirrorUpstreamDown": {f"upstream_up{{{UPSTREAM}}}": "0x60", **ASKED},
    "RegistryMirrorStaleServed": {f'stale_served_total{{{WHO}, registry="docker.io", reason="timeout"}}': "0+1x60"},
    "RegistryMirrorDigestMismatch": {f'downloads_total{{{WHO}, result="digest_mismatch"}}': "0x30 1x30"},
    "RegistryMirrorDownloadsFail": {f'downloads_total{{{WHO}, result="failed"}}': "0+1x60"},
    "RegistryMirrorStoreRefuses": {f'downloads_total{{{WHO}, result="bypassed"}}': "0+1x60"},
    "RegistryMirrorRateLimitNearlyUsed": {
        f'upstream_ratelimit_remaining{{{WHO}, registry="docker.io"}}': "5x60",
        f'upstream_ratelimit_limit{{{WHO}, registry="docker.io"}}': "100x60",
        **ASKED,
    },
    "RegistryMirrorCredentialsRefused": {f'upstream_credentials_ok{{{WHO}, registry="docker.io"}}': "1x30 0x30"},
    "RegistryMirrorFilesRefused": {f"renewed_files_ok{{{WHO}}}": "1x30 0x30"},
    "RegistryMirrorDiskFilledByOthers": {f"storage_min_free_ok{{{WHO}}}": "1x30 0x30"},
    "RegistryMirrorClientsTurnedAway": {f'refused_total{{{WHO}, reason="requests"}}': "0+10x60"},
    "RegistryMirrorHeldBlobsDamaged": {f'scrubbed_blobs_total{{{WHO}, result="wrong"}}': "0x30 1x30"},
    "RegistryMirrorStoreTooSmall": {
        f'evicted_bytes_total{{{WHO}, reason="max_size"}}': "0+2000x60",
        f'evicted_bytes_total{{{WHO}, reason="min_free"}}': "0+2000x60",
        f"storage_bytes{{{WHO}}}": "100000x60",
    },
    "RegistryMirrorOutOfStep": {
        f'sync_runs_total{{{WHO}, result="failed"}}': "0+0.1x60",
        f'sync_runs_total{{{WHO}, result="completed"}}': "7x60",
    },
    "RegistryMirrorNotificationsFail": {f'notifications_total{{{WHO}, result="failed"}}': "0x30 1x30"},
}
CALM = {
    f"upstream_up{{{UPSTREAM}}}": "1x60",
    f'upstream_up{{{WHO}, registry="ghcr.io", upstream="ghcr.io:443"}}': "0x60",
    f'stale_served_total{{{WHO}, registry="docker.io", reason="timeout"}}': "3x60",
    f'stale_served_total{{{WHO}, registry="docker.io", reason="deleted"}}': "0+1x60",
    f'upstream_credentials_ok{{{WHO}, registry="docker.io"}}': "1x60",
    f"renewed_files_ok{{{WHO}}}": "1x60",
    f"storage_min_free_ok{{{WHO}}}": "1x60",
    f'refused_total{{{WHO}, reason="requests"}}': "0+1x60",
    f'refused_total{{{WHO}, reason="policy"}}': "1000x60",
    f'scrubbed_blobs_total{{{WHO}, result="wrong"}}': "2x60",
    f'scrubbed_blobs_total{{{WHO}, result="ok"}}': "0+100x60",
    f'evicted_bytes_total{{{WHO}, reason="max_size"}}': "0+1000x60",
    f"storage_bytes{{{WHO}}}": "500000x60",
    f'sync_runs_total{{{WHO}, result="failed"}}': "0+1x60",
    f'sync_runs_total{{{WHO}, result="completed"}}': "0x45 1x15",
    f'notifications_total{{{WHO}, result="failed"}}': "2x60",
    f'notifications_total{{{WHO}, result="sent"}}': "0+1x60",
    f'downloads_total{{{WHO}, result="digest_mismatch"}}': "0x60",
    f'downloads_total{{{WHO}, result="failed"}}': "2x60",
    f'downloads_total{{{WHO}, result="bypassed"}}': "0x60",
    f'upstream_ratelimit_remaining{{{WHO}, registry="docker.io"}}': "90x60",
    f'upstream_ratelimit_limit{{{WHO}, registry="docker.io"}}': "100x60",
    **ASKED,
}


def test_every_alert_is_tried_here():
    """No alert is shipped that no test has seen firing."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]

    assert {rule["alert"] for group in groups for rule in group["rules"]} == set(TROUBLES)


@pytest.mark.parametrize("alert", TROUBLES)
def test_an_alert_fires_in_the_trouble_it_is_for(alert, tmp_path):
    """The alert fires, exactly once, and no other does."""
    assert _firing(TROUBLES[alert], tmp_path) == [alert]


def test_nothing_fires_in_calm_times(tmp_path):
    """Neither an upstream that nobody asks any more nor troubles of long ago raise an alarm."""
    assert _firing(CALM, tmp_path) == []


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=["alerts", "dashboard"])
def test_every_metric_that_is_asked_for_exists(file):
    """Alerts and dashboard name only metrics that the mirror has."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    existing = {family.name + suffix for family in Metrics().registry.collect() for suffix in suffixes[family.type]}

    named = set(re.findall(r"registry_mirror_[a-z_]+", file.read_text()))

    assert named
    assert named <= existing


def test_the_panels_have_ids_of_their_own_and_ask_prometheus_something():
    """The dashboard is what Grafana can import."""
    panels = json.loads(DASHBOARD.read_text())["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def _firing(series: dict[str, str], directory: Path) -> list[str]:
    """The alerts that fire after 50 minutes of these series, by promtool."""
    unit = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": f"registry_mirror_{name}", "values": values} for name, values in series.items()],
                "promql_expr_test": [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": "50m", "exp_samples": []}],
            }
        ],
    }
    file = directory / "test.yaml"
    file.write_text(yaml.safe_dump(unit))
    done = subprocess.run([find_command("promtool"), "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    output = done.stdout + done.stderr
    found = re.findall(r'alertname="(\w+)"', output)
    # Without an alert nothing but success may be said: else a mistake in the rules would pass for calm.
    assert found or "SUCCESS" in output, output
    return sorted(found)
