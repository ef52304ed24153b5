"""The container image of the project, built by buildah over a base that debootstrap makes, without any registry."""

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path

from tests.e2e.harness.process import find_command, search_path, succeed

ROOT = Path(__file__).parents[3]
_BASE_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_CONTEXT = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "man", "mirror", "deploy")
_MINUTES = 60


class ImageBuilder:
    """A storage of images of its own, with a base image in it."""

    def __init__(self, directory: Path) -> None:
        """Make the base image, and collect the packages that constraints.txt names: the build has no network."""
        self._directory = directory
        self._context = directory / "context"
        self._context.mkdir(parents=True)
        self._environment = {**os.environ, "PATH": search_path(), "TMPDIR": str(directory)}
        for name in _CONTEXT:
            source, target = ROOT / name, self._context / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes"]
        self._run(*pip, "--requirement", str(ROOT / "constraints.txt"), "--dest", str(self._context / "wheels"))
        self._make_base()

    def build(self, name: str) -> str:
        """Build the image from nothing that an earlier build has left; its id."""
        options = ["--isolation=chroot", "--format=docker", "--pull-never", "--no-cache", "--quiet"]
        arguments = ["--build-arg=BASE=localhost/base", "--build-arg=PIP_NO_INDEX=1"]
        file = str(self._context / "deploy" / "Containerfile")
        return self._buildah("build", *options, *arguments, f"--file={file}", f"--tag={name}", str(self._context)).splitlines()[
            -1
        ]

    def save(self, name: str, path: Path) -> None:
        """Write an image as `docker save` does."""
        self._buildah("push", "--quiet", f"localhost/{name}", f"docker-archive:{path}:{name}:latest")

    def files(self, name: str, within: str) -> dict[str, str]:
        """The hash of each file of an image below a directory; a link's target."""
        container = self._buildah("from", "--pull-never", f"localhost/{name}")
        root = Path(self._buildah("mount", container), within.lstrip("/"))
        found = {}
        for path in (path for path in root.rglob("*") if path.is_symlink() or path.is_file()):
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
        self._buildah("rm", container)
        return found

    def _make_base(self) -> None:
        base, archive = self._directory / "base", self._directory / "base.tar"
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        self._run("debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", release, str(base))
        self._run("tar", "--create", "--one-file-system", f"--directory={base}", f"--file={archive}", ".")
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, str(archive), "/")
        self._buildah("commit", "--quiet", container, "localhost/base")
        self._buildah("rm", container)
        archive.unlink()
        shutil.rmtree(base)

    def _buildah(self, *arguments: str) -> str:
        storage = [f"--root={self._directory / 'storage'}", f"--runroot={self._directory / 'run'}", "--storage-driver=vfs"]
        return self._run("buildah", *storage, *arguments)

    def _run(self, command: str, *arguments: str) -> str:
        return succeed([find_command(command), *arguments], self._environment, 10 * _MINUTES).decode().strip()
