"""The command `client-config` prints for the registries of the configuration, and writes without losing anything."""

import json
import os

import pytest
from typer.testing import CliRunner

from mirror.cli import app
from tests.mirror.commands import command

CONFIG = "registries:\n  docker.io: {}\n  ghcr.io: {upstreams: [https://ghcr.io]}\n"
URL = ("--url", "http://mirror.test:5000")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "mirror.yaml").write_text(CONFIG)

    async def run(*arguments):
        return await command("client-config", *arguments, directory=tmp_path)

    return run


@pytest.fixture
def root(tmp_path):
    """The root of a client's file system, with a configured Docker."""
    file = tmp_path / "root/etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text('{\n    "debug": true,\n    "registry-mirrors": ["http://old"]\n}\n')
    file.chmod(0o640)
    return tmp_path / "root"


async def test_printed(run):
    """People get the files, the reload and the check; scripts the same as JSON; `--registry` narrows it down."""
    status, out, complaint = await run("docker", *URL)
    assert (status, complaint) == (0, "")
    for part in (
        "/etc/docker/daemon.json",
        '"http://mirror.test:5000"',
        "systemctl reload docker",
        "docker info",
        "ghcr.io/hosts.toml",
    ):
        assert part in out
    _, out, _ = await run("containerd", *URL, "--registry", "ghcr.io", "--json")
    (file,) = json.loads(out)["files"]
    assert (file["path"], "ghcr.io" in file["content"]) == ("/etc/containerd/certs.d/ghcr.io/hosts.toml", True)


async def test_address_of_the_configuration(run, tmp_path):
    """Without --url it is `listen`, unless that is no address for a client."""
    _, out, _ = await run("docker", "--json")
    assert "http://127.0.0.1:5000" in json.loads(out)["files"][0]["content"]
    (tmp_path / "mirror.yaml").write_text("listen: ':5000'\n")
    status, _, complaint = await run("docker")
    assert (status, "--url is required" in complaint) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("rocket", *URL), "there is no client 'rocket'; there are docker, containerd"),
        (("docker", "--url", "mirror.test"), "--url: invalid URL 'mirror.test'"),
        (("docker", *URL, "--registry", "quay.io"), "quay.io is not mirrored; there are docker.io, ghcr.io"),
        (("docker", *URL, "--registry", "UP PER"), "--registry: "),
        (("docker", *URL, "--ca", "ca.pem"), "--ca: must be an absolute path"),
    ],
)
async def test_refused(run, arguments, part):
    status, out, complaint = await run(*arguments)
    (line,) = complaint.splitlines()
    assert (status, out, part in line) == (2, "", True)


async def test_written(run, root):
    """The other keys stay, the file before is kept beside it, and a second time changes nothing."""
    file = root / "etc/docker/daemon.json"
    before = file.read_text()
    status, out, complaint = await run("docker", *URL, "--write", "--root", str(root))
    assert (status, complaint) == (0, "")
    assert json.loads(file.read_text()) == {"debug": True, "registry-mirrors": ["http://mirror.test:5000", "http://old"]}
    assert file.stat().st_mode & 0o777 == 0o640
    assert (file.parent / "daemon.json.bak").read_text() == before
    assert (root / "etc/docker/certs.d/ghcr.io/hosts.toml").stat().st_mode & 0o777 == 0o644
    assert "systemctl reload docker" in out
    status, out, _ = await run("docker", *URL, "--write", "--root", str(root))
    assert (status, out.count("unchanged: ")) == (0, 2)
    assert sorted(path.name for path in file.parent.iterdir()) == ["certs.d", "daemon.json", "daemon.json.bak"]
    await run("docker", "--url", "http://new.test", "--write", "--root", str(root))
    assert (file.parent / "daemon.json.bak").read_text() == before
    assert (file.parent / "daemon.json.bak1").exists()


async def test_written_through_a_link(run, root):
    """A link to the file stays a link."""
    file = root / "etc/docker/daemon.json"
    file.rename(root / "real.json")
    file.symlink_to("../../real.json")
    assert (await run("docker", *URL, "--write", "--root", str(root)))[0] == 0
    assert file.is_symlink()
    assert "http://mirror.test:5000" in (root / "real.json").read_text()


async def test_all_or_nothing(run, root):
    """If one file cannot be merged none is written, and what it needs is shown."""
    file = root / "etc/docker/daemon.json"
    file.write_text("{broken")
    status, out, complaint = await run("docker", *URL, "--write", "--root", str(root))
    assert (status, out) == (1, "")
    assert f"{file} is no JSON" in complaint
    assert '"registry-mirrors"' in complaint
    assert file.read_text() == "{broken"
    assert not (root / "etc/docker/certs.d").exists()
    assert [path.name for path in file.parent.iterdir()] == ["daemon.json"]


async def test_file_of_somebody_else(run, root):
    """A main file with other content is never replaced."""
    file = root / "etc/buildkit/buildkitd.toml"
    file.parent.mkdir()
    file.write_text("debug = true\n")
    status, _, complaint = await run("buildkit", *URL, "--write", "--root", str(root))
    assert (status, "merge it by hand" in complaint, file.read_text()) == (1, True, "debug = true\n")


async def test_link_out_of_the_root(run, root, tmp_path):
    """Nothing outside of --root is written, though a link in an image leads there."""
    outside = tmp_path / "outside"
    (root / "etc/docker").rename(outside)
    (root / "etc/docker").symlink_to(outside)
    before = (outside / "daemon.json").read_text()
    status, out, complaint = await run("docker", *URL, "--write", "--root", str(root))
    assert (status, out, "leads out of" in complaint) == (1, "", True)
    assert [path.name for path in outside.iterdir()] == ["daemon.json"]
    assert (outside / "daemon.json").read_text() == before


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)], ids=["fifo", "directory", "loop"]
)
async def test_no_regular_file(run, root, make):
    """What is no file is left alone, be it a link to a device, which would be replaced for the whole host."""
    file = root / "etc/docker/daemon.json"
    file.unlink()
    make(file)
    before = file.lstat()
    status, out, complaint = await run("docker", *URL, "--write", "--root", str(root))
    assert (status, out, "is no regular file" in complaint) == (1, "", True)
    assert (file.lstat().st_ino, file.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_change_meanwhile(tmp_path, root, monkeypatch):
    """A file that something else changes while it is merged keeps that change."""
    (tmp_path / "mirror.yaml").write_text(CONFIG)
    file, fsync = root / "etc/docker/daemon.json", os.fsync

    def change(descriptor):
        fsync(descriptor)
        file.write_text('{"debug": false}')

    monkeypatch.setattr(os, "fsync", change)
    arguments = ["client-config", "docker", *URL, "--write", "--root", str(root), "--config", str(tmp_path / "mirror.yaml")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "was changed meanwhile" in result.output) == (1, True)
    assert file.read_text() == '{"debug": false}'
    assert [path.name for path in file.parent.iterdir()] == ["daemon.json"]
