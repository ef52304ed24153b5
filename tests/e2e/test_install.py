"""The project as a wheel: installed from a folder without a network, by pip and by pipx."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness.image_build import ROOT
from tests.e2e.harness.process import search_path, succeed

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of the project, and with the packages that constraints.txt names."""
    folder = tmp_path_factory.mktemp("install") / "wheels"
    environment = {**os.environ, "PATH": search_path()}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = ["--no-deps", "--no-build-isolation", str(ROOT)]
    succeed([*pip, "wheel", "--wheel-dir", str(folder), *source], environment, 120)
    requirements = ["--require-hashes", "--requirement", str(ROOT / "constraints.txt")]
    succeed([*pip, "download", "--dest", str(folder), *requirements], environment, 300)
    return folder


def commands(program: Path, directory: Path) -> None:
    """What a new user tries first; outside the repository, so that nothing is imported from there."""
    for arguments in (["--version"], ["check-config"], ["serve", "--help"]):
        done = subprocess.run([program, *arguments], cwd=directory, env={"PATH": search_path()}, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()


def test_from_a_folder(wheels: Path, tmp_path: Path) -> None:
    """`pip install --no-index --find-links` takes what is needed, and nothing for tests."""
    environment = {**os.environ, **OFFLINE}
    succeed([sys.executable, "-m", "venv", str(tmp_path / "venv")], environment, 120)
    pip = str(tmp_path / "venv" / "bin" / "pip")
    succeed([pip, "install", "--quiet", "--find-links", str(wheels), "registry-mirror"], environment, 300)
    commands(tmp_path / "venv" / "bin" / "registry-mirror", tmp_path)
    listed = succeed([pip, "list", "--format=freeze"], environment).decode()
    assert "aiohttp==" in listed
    assert "pytest" not in listed


def test_pipx(wheels: Path, tmp_path: Path) -> None:
    """`pipx install WHEEL` puts the command on the PATH."""
    (wheel,) = wheels.glob("registry_mirror-*.whl")
    home = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    environment = {**os.environ, **OFFLINE, **home, "PIP_FIND_LINKS": str(wheels), "PATH": search_path()}
    succeed(["pipx", "install", "--python", sys.executable, "--pip-args", f"--find-links {wheels}", str(wheel)], environment, 300)
    commands(tmp_path / "bin" / "registry-mirror", tmp_path)
