"""What an operator's own tools see at the admin address of a mirror that real clients use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.client import request
from tests.e2e.harness.image_build import ROOT
from tests.e2e.harness.mirror import Mirror
from tests.e2e.harness.process import client_environment, run
from tests.e2e.harness.skopeo import Skopeo

pytestmark = pytest.mark.e2e


def test_prometheus_accepts_the_metrics(directory: Path, numbers: Iterator[int], mirror: Mirror) -> None:
    """After a pull, `promtool check metrics` finds nothing to object to, and the pull has been counted."""
    workplace = directory / f"skopeo-{next(numbers)}"
    Skopeo(workplace, mirror.port).copy("docker.io/library/app:1")

    metrics = request("GET", f"{mirror.admin_url}/metrics").body

    checked = run(["promtool", "check", "metrics"], client_environment(workplace / "home"), 30, metrics)
    assert checked.returncode == 0, checked.stderr.decode()
    assert b"registry_mirror_requests_total{" in metrics


def test_manual_page(tmp_path: Path) -> None:
    """mandoc and groff have no complaint about it, and man shows every command."""
    page = ROOT / "man/registry-mirror.1"
    for command in (["mandoc", "-T", "lint", "-W", "warning"], ["groff", "-mandoc", "-ww", "-z"]):
        checked = run([*command, str(page)], client_environment(tmp_path), 30)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    shown = run(["mandoc", "-T", "ascii", str(page)], client_environment(tmp_path), 30).stdout
    assert b"client-config" in shown


def test_probes_answer(mirror: Mirror) -> None:
    """The liveness and the readiness probe of a healthy mirror answer 200."""
    assert request("GET", f"{mirror.admin_url}/healthz").status == 200
    assert request("GET", f"{mirror.admin_url}/readyz").status == 200
