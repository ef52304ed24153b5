"""A real Docker daemon that knows nothing but `registry-mirrors`, driven through its own HTTP interface."""

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import quote

from tests.e2e.harness.process import Program, client_environment, find_command, run

_API = "/v1.41"
_STARTUP_SECONDS = 60


class PullError(Exception):
    """The daemon said that a pull failed."""


@dataclass(frozen=True)
class Progress:
    """One line of what the daemon reports during a pull; `current` and `total` count bytes of one layer."""

    status: str
    layer: str
    current: int
    total: int


@dataclass(frozen=True)
class Held:
    """What the daemon says about an image that it holds."""

    image_id: str
    repo_digests: Sequence[str]
    architecture: str
    diff_ids: Sequence[str]


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Dockerd:
    """A daemon with its own directories; images of other registries than the mirror's cannot be reached."""

    def __init__(self, directory: Path, mirror_url: str | None = None, *, config: Path | None = None) -> None:
        """Start the daemon with one entry of `registry-mirrors`, or with a daemon.json, and wait until it answers."""
        directory.mkdir(parents=True)
        self._socket = directory / "d.sock"
        self._data = directory / "data"
        self._exec = directory / "exec"
        options = [
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--storage-driver=vfs",
            f"--data-root={self._data}",
            f"--exec-root={self._exec}",
            f"--pidfile={directory / 'pid'}",
            f"--host=unix://{self._socket}",
            *([] if mirror_url is None else [f"--registry-mirror={mirror_url}"]),
            *([] if config is None else [f"--config-file={config}"]),
        ]
        environment = client_environment(directory / "home")
        # The daemon makes TMPDIR private to itself, by default below its data root.
        environment.pop("TMPDIR")
        self._environment = client_environment(directory / "cli")
        self._program = Program(["dockerd", *options], directory / "dockerd.log", environment)
        try:
            self._program.wait_ready(self._answers, "GET /_ping", _STARTUP_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the daemon and the containerd that it started."""
        try:
            self._program.stop(30)
        finally:
            # A daemon that failed leaves its data root mounted on itself; one that has run containers, a network namespace.
            mounted = [str(self._data), *map(str, (self._exec / "netns").glob("*"))]
            subprocess.run([find_command("umount"), "-q", *mounted], check=False, timeout=10)

    @contextmanager
    def pulling(self, repository: str, reference: str, timeout: float = 60) -> Iterator[Iterator[Progress]]:
        """Pull a tag or a digest; the block gets the progress as it comes. PullError when the pull fails."""
        target = f"/images/create?fromImage={quote(repository, safe='')}&tag={quote(reference, safe='')}"
        with self._ask("POST", target, timeout) as response:
            if response.status != 200:
                raise PullError(json.loads(response.read())["message"])
            yield _progress(response)

    def pull(self, repository: str, reference: str, timeout: float = 60) -> Sequence[Progress]:
        """Pull to the end and hand out all progress. PullError when the pull fails."""
        with self.pulling(repository, reference, timeout) as progress:
            return list(progress)

    def inspect(self, name: str) -> Held:
        """The held image of this name, as `docker image inspect` has it."""
        with self._ask("GET", f"/images/{name}/json") as response:
            document = json.loads(response.read())
        assert response.status == 200, document
        return Held(
            image_id=document["Id"],
            repo_digests=document["RepoDigests"],
            architecture=document["Architecture"],
            diff_ids=document["RootFS"]["Layers"],
        )

    def remove_all(self) -> None:
        """Remove every image with its layers, so that the next pull has to fetch everything."""
        with self._ask("GET", "/images/json") as response:
            held = json.loads(response.read())
        for image in held:
            with self._ask("DELETE", f"/images/{image['Id']}?force=true") as response:
                answer = response.read()
            assert response.status == 200, answer

    def cli(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the `docker` command against this daemon."""
        return run(["docker", "--host", f"unix://{self._socket}", *arguments], self._environment, 60, stdin)

    def login(self, registry: str, user: str, password: str) -> subprocess.CompletedProcess[bytes]:
        """`docker login`."""
        return self.cli("login", "--username", user, "--password-stdin", registry, stdin=password.encode())

    def _answers(self) -> bool:
        try:
            with self._ask("GET", "/_ping", 5) as response:
                return response.status == 200
        except (OSError, HTTPException):
            return False

    @contextmanager
    def _ask(self, method: str, target: str, timeout: float = 60) -> Iterator[HTTPResponse]:
        with closing(_UnixConnection(self._socket, timeout)) as connection:
            connection.request(method, _API + target)
            with connection.getresponse() as response:
                yield response


def fetched_layers(progress: Sequence[Progress]) -> int:
    """How many layers the daemon downloaded instead of finding them in its own store."""
    # Not `Download complete`: of two news in a row the daemon may tell the latter only. One that it had already `Already exists`.
    return len({entry.layer for entry in progress if entry.status == "Pull complete"})


def _progress(response: HTTPResponse) -> Iterator[Progress]:
    for line in response:
        entry = json.loads(line)
        if "error" in entry:
            raise PullError(entry["error"])
        detail = entry.get("progressDetail") or {}
        yield Progress(
            status=entry.get("status", ""),
            layer=entry.get("id", ""),
            current=detail.get("current", 0),
            total=detail.get("total", 0),
        )
