"""The real skopeo, which stands for every client built on containers/image (podman, buildah, CRI-O)."""

import hashlib
from pathlib import Path

from tests.e2e.harness.process import client_environment, run, succeed

_MIRRORS = """\
[[registry]]
prefix = "docker.io"
location = "docker.io"

[[registry.mirror]]
location = "{location}"
insecure = true
"""


class CopyError(Exception):
    """`skopeo copy` failed; the message is its standard error."""


class Skopeo:
    """skopeo with a home of its own, and optionally with a mirror of docker.io in its registries.conf."""

    def __init__(self, directory: Path, mirror_port: int | None = None, *, configuration: Path | None = None) -> None:
        """Write the configuration, unless a file is given; without a mirror docker.io cannot be reached."""
        directory.mkdir(parents=True)
        self._directory = directory
        self._copies = 0
        if configuration is None:
            configuration = directory / "registries.conf"
            location = f"127.0.0.1:{mirror_port}"
            configuration.write_text("" if mirror_port is None else _MIRRORS.format(location=location))
        self._environment = client_environment(directory / "home")
        self._command = ["skopeo", "--insecure-policy", "--registries-conf", str(configuration)]

    def copy(self, source: str, *options: str, timeout: float = 60) -> dict[str, str]:
        """Copy an image such as docker.io/library/app:1 to a directory: sha256 of each file by name."""
        self._copies += 1
        target = self._directory / f"copy-{self._copies}"
        verify = [] if any(option.startswith("--src-tls-verify") for option in options) else ["--src-tls-verify=false"]
        arguments = ["copy", *verify, *options, f"docker://{source}", f"dir:{target}"]
        done = run([*self._command, *arguments], self._environment, timeout)
        if done.returncode != 0:
            raise CopyError(done.stderr.decode())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}

    def archive(self, source: str, target: str, *options: str) -> None:
        """Copy an image from a registry into an archive; both as skopeo names them."""
        succeed([*self._command, "copy", "--src-tls-verify=false", *options, source, target], self._environment)

    def raw_manifest(self, source: str) -> bytes:
        """`skopeo inspect --raw`: the bytes of the top manifest."""
        arguments = ["inspect", "--raw", "--tls-verify=false", f"docker://{source}"]
        return succeed([*self._command, *arguments], self._environment)

    def tags(self, source: str) -> bytes:
        """`skopeo list-tags`: the answer of the tag list."""
        arguments = ["list-tags", "--tls-verify=false", f"docker://{source}"]
        return succeed([*self._command, *arguments], self._environment)
