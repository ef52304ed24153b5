"""The real podman, with a storage of its own."""

from pathlib import Path

from tests.e2e.harness.process import client_environment, succeed


class Podman:
    """podman without a daemon; plain copies stand for layers, so any file system will do.

    Args:
        directory: its path is short: podman takes at most 50 characters for that of its state.
    """

    def __init__(self, directory: Path) -> None:
        """Write its configuration; nothing is verified but digests."""
        directory.mkdir(parents=True)
        self._directory = directory
        self._environment = client_environment(directory / "home")
        policy = directory / "home" / ".config" / "containers"
        policy.mkdir(parents=True)
        (policy / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def ask(self, *arguments: str) -> bytes:
        """Run a command."""
        storage = [f"--root={self._directory}/root", f"--runroot={self._directory}/run", "--storage-driver=vfs"]
        policy = f"--signature-policy={self._directory}/home/.config/containers/policy.json"
        extra = [policy] if arguments[0] == "pull" else []
        return succeed(["podman", *storage, arguments[0], *extra, *arguments[1:]], self._environment)
