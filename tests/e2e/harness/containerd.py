"""A real containerd with `ctr`, configured by a hosts.toml."""

from collections.abc import Sequence
from pathlib import Path

from tests.e2e.harness.process import Program, client_environment, run, succeed

_CONFIGURATION = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/c.sock.ttrpc"
"""


class PullError(Exception):
    """`ctr images pull` failed; the message is its standard error."""


class Containerd:
    """A containerd with its own directories; plain copies stand for snapshots, so any file system will do."""

    def __init__(self, directory: Path) -> None:
        """Start containerd and wait until it answers."""
        directory.mkdir(parents=True)
        self._directory = directory
        self._address = directory / "c.sock"
        self._environment = client_environment(directory / "home")
        configuration = directory / "config.toml"
        configuration.write_text(_CONFIGURATION.format(directory=directory))
        argv = ["containerd", "--config", str(configuration)]
        self._program = Program(argv, directory / "containerd.log", self._environment)
        self._program.wait_ready(self._answers, "ctr version", 30)

    def close(self) -> None:
        """End containerd."""
        self._program.stop()

    def hosts(self, name: str, registry: str, server: str, mirror_url: str) -> Path:
        """Write a hosts directory: for `registry`, the mirror first, and `server` after it."""
        directory = self._directory / name / registry
        directory.mkdir(parents=True)
        text = f'server = "{server}"\n\n[host."{mirror_url}"]\n  capabilities = ["pull", "resolve"]\n'
        (directory / "hosts.toml").write_text(text)
        return directory.parent

    def pull(self, hosts: Path, reference: str, timeout: float = 60) -> None:
        """Pull and unpack a full reference such as docker.io/library/app:1. PullError when it fails."""
        arguments = ["images", "pull", "--snapshotter", "native", "--hosts-dir", str(hosts), reference]
        done = run(self._ctr(*arguments), self._environment, timeout)
        if done.returncode != 0:
            raise PullError(done.stderr.decode())

    def export(self, file: Path, *references: str) -> None:
        """Write images to a tar, for this machine's platform."""
        self._ask("images", "export", str(file), *references)

    def image_digest(self, reference: str) -> str:
        """The digest of the manifest or index that this image name stands for."""
        for line in self._ask("images", "ls").splitlines()[1:]:
            name, _, digest = line.split()[:3]
            if name == reference:
                return digest
        raise AssertionError(f"containerd holds no image {reference}")

    def load(self, file: Path) -> dict[str, str]:
        """`ctr images import`; returns the digests of all images by name."""
        self._ask("images", "import", "--snapshotter=native", str(file))
        rows = (line.split() for line in self._ask("images", "ls").splitlines()[1:])
        return {row[0]: row[2] for row in rows}

    def held_digests(self) -> set[str]:
        """The digests of everything in the content store."""
        return set(self._ask("content", "ls", "-q").split())

    def unpacked(self) -> int:
        """How many layers are unpacked to snapshots."""
        return len(self._ask("snapshots", "--snapshotter", "native", "ls").splitlines()) - 1

    def remove_all(self) -> None:
        """Remove every image and wait until its content is gone too."""
        names: Sequence[str] = self._ask("images", "ls", "-q").split()
        if names:
            self._ask("images", "rm", "--sync", *names)

    def _ctr(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self._address), *arguments]

    def _ask(self, *arguments: str) -> str:
        return succeed(self._ctr(*arguments), self._environment).decode()

    def _answers(self) -> bool:
        return run(self._ctr("version"), self._environment, 10).returncode == 0
