"""The upstream: a real docker-registry with its own storage, and what it was asked, from its access log."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tests.e2e.harness.client import Answer, request
from tests.e2e.harness.images import Content, Image, Index
from tests.e2e.harness.process import HarnessError, Program, listening
from tests.support.ports import free_port
from tests.support.waiting import wait_until

_ACCESS = re.compile(
    r'"(?P<method>[A-Z]+) /v2/(?P<repository>[^ "?]+)/(?P<kind>manifests|blobs)/(?P<reference>[^ "/?]+)'
    r'(?:\?[^ "]*)? HTTP/[\d.]+" (?P<status>\d{3}) (?P<size>\d+) "[^"]*" "(?P<agent>[^"]*)"'
)


@dataclass(frozen=True)
class Asked:
    """One request for a manifest or a blob, as the upstream logged it."""

    method: str
    repository: str
    kind: str
    reference: str
    status: int
    size: int
    agent: str


class Upstream:
    """A docker-registry on a loopback port over plain HTTP; a restart keeps its content."""

    def __init__(self, directory: Path) -> None:
        """Start it with its storage below `directory`."""
        directory.mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = directory / "registry.log"
        self._config = directory / "registry.yml"
        self._marks = 0
        self._config.write_text(yaml.safe_dump(_configuration(directory / "storage", self.port)))
        self.start()

    def start(self) -> None:
        """Start the process and wait until it listens."""
        self._program = Program(["docker-registry", "serve", str(self._config)], self._log)
        self._program.wait_ready(lambda: listening(self.port), "listening", 20)

    def stop(self) -> None:
        """End the process; from then on connections are refused."""
        self._program.stop()

    @contextmanager
    def down(self) -> Iterator[None]:
        """The process is ended within the block and started again after it."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block connections are accepted by the kernel, and nothing is ever answered."""
        self._program.freeze()
        try:
            yield
        finally:
            self._program.thaw()

    def push(self, item: Image | Index, repository: str, tag: str) -> None:
        """Push an image or an index under a tag (OCI distribution-spec, Push)."""
        if isinstance(item, Index):
            for image in item.images:
                self._push_image(image, repository, image.manifest.digest)
            self._put_manifest(item.manifest, repository, tag)
        else:
            self._push_image(item, repository, tag)

    def asked(self) -> Sequence[Asked]:
        """Every request for a manifest or a blob that has been answered up to now, in order."""
        self._settle()
        lines = self._log.read_text(errors="replace").splitlines()
        return [_parse(found) for line in lines if (found := _ACCESS.search(line)) is not None]

    def downloads_since(self, position: int) -> Sequence[Asked]:
        """The GETs after the first `position` requests of `asked`; HEADs carry no content."""
        return [entry for entry in self.asked()[position:] if entry.method == "GET"]

    def _settle(self) -> None:
        # A request is logged after its last byte was sent, so a client can be ahead of the log.
        if not self._program.running:
            return
        self._marks += 1
        mark = f"mark-{self._marks}"
        request("GET", f"{self.url}/v2/?{mark}")
        wait_until(lambda: mark in self._log.read_text(errors="replace"), "the upstream's log", 10)

    def _push_image(self, image: Image, repository: str, reference: str) -> None:
        for blob in image.blobs:
            self._push_blob(blob, repository)
        self._put_manifest(image.manifest, repository, reference)

    def _push_blob(self, blob: Content, repository: str) -> None:
        opened = request("POST", f"{self.url}/v2/{repository}/blobs/uploads/", b"")
        _expect(opened, 202)
        location = urlsplit(opened.headers["Location"])
        target = f"{self.url}{location.path}?{location.query}&digest={blob.digest}"
        _expect(request("PUT", target, blob.data, {"Content-Type": "application/octet-stream"}), 201)

    def _put_manifest(self, manifest: Content, repository: str, reference: str) -> None:
        target = f"{self.url}/v2/{repository}/manifests/{reference}"
        _expect(request("PUT", target, manifest.data, {"Content-Type": manifest.media_type}), 201)


def _configuration(storage: Path, port: int) -> dict[str, object]:
    return {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "upstream"},
    }


def _parse(found: re.Match[str]) -> Asked:
    return Asked(
        method=found["method"],
        repository=found["repository"],
        kind=found["kind"],
        reference=found["reference"],
        status=int(found["status"]),
        size=int(found["size"]),
        agent=found["agent"],
    )


def _expect(answer: Answer, status: int) -> None:
    if answer.status != status:
        raise HarnessError(f"push: {answer.status} instead of {status}: {answer.body[:500]!r}")
