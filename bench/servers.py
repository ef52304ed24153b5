"""The servers under measurement, each set up as an operator would for this work, and their origin."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from bench.clients import LOCAL, get
from bench.content import MANIFEST_TYPE
from bench.nginx import NGINX, NGINX_FILES, NGINX_ORIGIN, NGINX_PROXY, NGINX_VERIFIES
from bench.process import Child, NotTakenError

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 20.0
POLL_SECONDS = 0.05
# What a stock Linux has: one connection of it suffers from loss as those of most upstreams do.
CONGESTION = "cubic"


@dataclass
class Server:
    """A running server under measurement."""

    port: int
    child: Child
    host: str = field(default=LOCAL, kw_only=True)


@dataclass
class Mirror(Server):
    """A mirror, with the port of its admin address."""

    admin: int


@dataclass
class FastOrigin(Server):
    """An upstream that sends as fast as the machine can, with the port where it does so over TLS."""

    tls_port: int


@dataclass
class Origin(Server):
    """The registry that the others pull from."""

    def counters(self) -> dict[str, int]:
        """Body bytes, requests and transfers so far, as `bench.origin.Counters`."""
        counters: dict[str, int] = json.loads(get(self.port, "/control", host=self.host)[1])
        return counters


@contextmanager
def origin(
    home: Path, content: Path, rate: float = 0, connection_rate: float = 0, latency: float = 0, within: Sequence[str] = ()
) -> Iterator[Origin]:
    """Serve `content`; rates in bytes per second, latency in seconds, 0 means none.

    Args:
        within: a command that runs it elsewhere, where it listens at every address.
    """
    argv = [*within, sys.executable, "-m", "bench.origin", str(content)]
    argv += [f"--rate={rate}", f"--connection-rate={connection_rate}", f"--latency={latency}"]
    if within:
        argv += ["--host=0.0.0.0", f"--congestion={CONGESTION}"]
    with Child(argv, _new(home) / "log", cwd=ROOT) as child:
        yield Origin(int(child.first_line(READY_SECONDS)), child)


@contextmanager
def nginx_files(home: Path, content: Path, workers: int, digest: str = '""') -> Iterator[Server]:
    """nginx serving `content` as files by sendfile; `digest` goes into the headers of manifests."""
    port = free_port()
    http = NGINX_FILES.format(port=port, root=content, manifest_type=MANIFEST_TYPE, digest=digest)
    with _nginx(_new(home), http, workers, port) as server:
        yield server


@contextmanager
def nginx_origin(home: Path, content: Path, certificate: Path) -> Iterator[FastOrigin]:
    """nginx serving `content` as an upstream, plain and over TLS; `certificate` holds its key, too."""
    port, tls_port = free_port(), free_port()
    http = NGINX_ORIGIN.format(port=port, tls_port=tls_port, root=content, certificate=certificate)
    with _nginx(_new(home), http, 1, port) as server:
        yield FastOrigin(server.port, server.child, tls_port)


def nginx_proxy(home: Path, upstream: int, workers: int) -> AbstractContextManager[Server]:
    """nginx as a caching proxy of the origin on port `upstream`, one fetch at a time per blob."""
    return nginx_proxy_of(home, f"http://127.0.0.1:{upstream}", workers)


@contextmanager
def nginx_proxy_of(home: Path, url: str, workers: int, ca_file: Path | None = None) -> Iterator[Server]:
    """nginx as a caching proxy of the upstream at `url`, whose certificate is checked against `ca_file`."""
    port = free_port()
    new = _new(home)
    scheme, _, host = url.partition("://")
    tls = NGINX_VERIFIES.format(ca_file=ca_file) if ca_file else ""
    http = NGINX_PROXY.format(port=port, scheme=scheme, origin=host, home=new, tls=tls)
    with _nginx(new, http, workers, port) as server:
        yield server


def docker_registry(home: Path, upstream: int) -> AbstractContextManager[Server]:
    """docker-registry in proxy mode with its default number of threads."""
    return docker_registry_of(home, f"http://127.0.0.1:{upstream}")


@contextmanager
def docker_registry_of(home: Path, url: str) -> Iterator[Server]:
    """docker-registry as a pull-through cache of the upstream at `url`."""
    new = _new(home)
    port = free_port()
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(new / "store")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "proxy": {"remoteurl": url},
    }
    file = new / "config.yml"
    file.write_text(json.dumps(config))
    with Child([_program("docker-registry"), "serve", str(file)], new / "log", cwd=new) as child:
        _wait_answer(child, port, "/v2/")
        yield Server(port, child)


def mirror(
    home: Path, upstream: int, workers: int, downloads: Mapping[str, object] | None = None
) -> AbstractContextManager[Server]:
    """The mirror with its defaults but for `downloads`. NotTakenError tells its own words if it refuses."""
    return mirror_of(home, f"http://127.0.0.1:{upstream}", workers, downloads=downloads)


@contextmanager
def mirror_of(
    home: Path,
    url: str,
    workers: int,
    registry: Mapping[str, object] | None = None,
    downloads: Mapping[str, object] | None = None,
) -> Iterator[Mirror]:
    """The mirror of the upstream at `url` with its defaults, but for `registry`, which are keys of that, and `downloads`."""
    more = {"workers": workers} if workers > 1 else {}
    settings = {"registries": {"docker.io": {"upstreams": [url], **(registry or {})}}, "downloads": dict(downloads or {}), **more}
    with serving_mirror(home, settings) as server:
        yield server


@contextmanager
def serving_mirror(home: Path, settings: Mapping[str, object]) -> Iterator[Mirror]:
    """A mirror with these settings, which answers."""
    with started_mirror(home, settings) as server:
        _wait_answer(server.child, server.admin, "/healthz")
        _wait_answer(server.child, server.port, "/v2/")
        yield server


@contextmanager
def tls_mirror(home: Path, upstream: int, workers: int, certificate: Path) -> Iterator[Mirror]:
    """The mirror of the origin on port `upstream`, with TLS; `certificate` holds its key, too."""
    tls = {"certificate": str(certificate), "key": str(certificate)}
    registries = {"docker.io": {"upstreams": [f"http://127.0.0.1:{upstream}"]}}
    with started_mirror(home, {"registries": registries, "tls": tls, "workers": workers}) as server:
        _wait_answer(server.child, server.admin, "/healthz")
        yield server


@contextmanager
def started_mirror(home: Path, settings: Mapping[str, object]) -> Iterator[Mirror]:
    """A mirror that has just been started with these settings, and may not answer yet."""
    new = _new(home)
    port, admin = free_port(), free_port()
    config = {
        "listen": f"127.0.0.1:{port}",
        "admin": {"listen": f"127.0.0.1:{admin}"},
        "storage": {"path": str(new / "store")},
        "tags": {"ttl": "1h"},
        "log": {"level": "warning"},
        **settings,
    }
    file = new / "mirror.yaml"
    # JSON is YAML too, and needs no care about quoting.
    file.write_text(json.dumps(config, indent=2))
    with Child([sys.executable, "-m", "mirror", "serve", "--config", str(file)], new / "log", cwd=ROOT) as child:
        yield Mirror(port, child, admin)


def certificate(home: Path) -> Path:
    """A certificate for localhost with its key in the same file."""
    key, file = home / "key.pem", home / "certificate.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    argv += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(file)]
    try:
        subprocess.run(argv, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotTakenError(f"openssl made no certificate: {error}") from error
    file.write_text(file.read_text() + key.read_text())
    return file


def versions() -> dict[str, str]:
    """What is compared with what."""
    commands = {
        "nginx": ["nginx", "-v"],
        "docker-registry": ["docker-registry", "--version"],
        "wrk": ["wrk", "-v"],
    }
    found = {"python": sys.version.split()[0]}
    for name, argv in commands.items():
        if shutil.which(name):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
            found[name] = (done.stderr + done.stdout).splitlines()[0].split(" Copyright")[0].strip()
    return found


@contextmanager
def _nginx(home: Path, http: str, workers: int, port: int) -> Iterator[Server]:
    # Workers of a root master would otherwise run as a user that may not read the content.
    user = "user root;" if os.geteuid() == 0 else ""
    file = home / "nginx.conf"
    file.write_text(NGINX.format(user=user, workers=workers, home=home, http=http))
    argv = [_program("nginx"), "-e", f"{home}/error.log", "-p", str(home), "-c", str(file)]
    with Child(argv, home / "log") as child:
        _wait_answer(child, port, "/")
        yield Server(port, child)


def _wait_answer(child: Child, port: int, path: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        child.check_alive()
        try:
            status, _ = get(port, path)
        except (OSError, HTTPException) as error:
            problem = str(error)
        else:
            if status < 500:
                return
            problem = f"status {status}"
        if time.monotonic() > deadline:
            raise NotTakenError(f"no answer to {path} within {READY_SECONDS:.0f} s ({problem}): {child.last_line()}")
        time.sleep(POLL_SECONDS)


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not path:
        raise NotTakenError(f"{name} is not installed")
    return path


def _new(home: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=home))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
