"""systemd accepts the unit that is shipped."""

import subprocess
from pathlib import Path

import pytest

from mirror.config.model import Config
from mirror.service.mirror import DRAIN_S
from tests.e2e.harness.process import find_command

pytestmark = pytest.mark.e2e

UNIT = Path(__file__).parents[2] / "systemd" / "registry-mirror.service"
BINARY = "/opt/registry-mirror/bin/registry-mirror"


def test_systemd_finds_nothing_to_complain_about(tmp_path):
    """`systemd-analyze verify` has not a word to say about the unit, given that the program is installed."""
    program = tmp_path / "registry-mirror"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = UNIT.read_text()
    assert f"ExecStart={BINARY} serve" in text
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(BINARY, str(program)))

    verified = subprocess.run(
        [find_command("systemd-analyze"), "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_socket_is_for_the_service(tmp_path):
    """The unit that holds the port passes it to the service, at the address of the default configuration."""
    lines = (UNIT.parent / "registry-mirror.socket").read_text().splitlines()
    assert f"ListenStream={Config().listen}" in lines
    for name, text in (
        ("registry-mirror.service", f"[Service]\nExecStart={tmp_path}/x\n"),
        ("registry-mirror.socket", "\n".join(lines)),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "x").write_text("#!/bin/sh\n")
    (tmp_path / "x").chmod(0o755)
    argv = [find_command("systemd-analyze"), "verify", "--man=no", str(tmp_path / "registry-mirror.socket")]
    verified = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_sandbox_is_tight():
    """`systemd-analyze security` rates the exposure of the unit at most 1.2 of 10, without what may not be forbidden."""
    rated = subprocess.run(
        [find_command("systemd-analyze"), "security", "--offline=true", "--no-pager", "--threshold=12", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert rated.returncode == 0, rated.stdout


def test_systemd_waits_longer_than_the_mirror_drains():
    """The unit leaves the mirror more time to stop than its drain may take."""
    limit = next(line for line in UNIT.read_text().splitlines() if line.startswith("TimeoutStopSec="))

    assert int(limit.partition("=")[2]) > DRAIN_S


def test_systemd_tells_only_the_first_process_to_stop():
    """Workers hear SIGTERM from their supervisor; a second one from systemd would cut their drain short."""
    assert "KillMode=mixed" in UNIT.read_text().splitlines()
