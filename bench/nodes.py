"""Nodes of a cluster, and their Redis, as servers under measurement."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

from bench import servers
from bench.clients import LOCAL, get
from bench.process import Child, NotTakenError
from bench.servers import Mirror, Server, free_port

SECRET = "a secret of forty characters, more or less"
NODES, WORKERS = 3, 2
READY_SECONDS, POLL_SECONDS = 20.0, 0.05


@contextmanager
def redis(home: Path) -> Iterator[Server]:
    """A Redis without persistence."""
    program = shutil.which("redis-server")
    if not program:
        raise NotTakenError("redis-server is not installed")
    port = free_port()
    argv = [program, "--port", str(port), "--bind", LOCAL, "--save", "", "--appendonly", "no", "--dir", str(home)]
    with Child(argv, home / "redis.log") as child:
        try:
            yield Server(port, child)
        finally:
            # One that is stopped does not see that it is to end.
            child.signal(signal.SIGCONT)


@contextmanager
def node(home: Path, upstream: int, server: Server, workers: int = 1, **settings: object) -> Iterator[Mirror]:
    """A node with the defaults of a cluster, which has found its Redis.

    Args:
        upstream: the port of the origin.
        settings: further sections of the configuration.
    """
    with servers.started_mirror(home, _settings(home, upstream, server, workers, settings)) as mirror:
        _wait_joined(mirror)
        yield mirror


def nodes(home: Path, upstream: int, server: Server, count: int = NODES) -> AbstractContextManager[list[Mirror]]:
    """So many nodes of two workers."""
    return _all_of([node(home, upstream, server, WORKERS) for _ in range(count)])


@contextmanager
def _all_of(starting: list[AbstractContextManager[Mirror]]) -> Iterator[list[Mirror]]:
    with ExitStack() as stack:
        yield [stack.enter_context(each) for each in starting]


def _settings(home: Path, upstream: int, server: Server, workers: int, more: Mapping[str, object]) -> dict[str, object]:
    secret = home / "secret"
    secret.write_text(SECRET)
    os.chmod(secret, 0o600)
    cluster = {
        "redis": {"url": f"redis://{LOCAL}:{server.port}/0"},
        "listen": f"{LOCAL}:{free_port()}",
        "secret_file": str(secret),
    }
    registries = {"docker.io": {"upstreams": [f"http://{LOCAL}:{upstream}"]}}
    counts = {"workers": workers} if workers > 1 else {}
    return {"registries": registries, "cluster": cluster, **counts, **more}


def _wait_joined(mirror: Mirror) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        mirror.child.check_alive()
        try:
            status, body = get(mirror.admin, "/readyz")
            if status == 200 and json.loads(body)["cluster"]["redis"] == "up":
                return
        except (OSError, HTTPException, ValueError, KeyError):
            pass
        if time.monotonic() > deadline:
            raise NotTakenError(f"a node has not joined within {READY_SECONDS:.0f} s: {mirror.child.last_line()}")
        time.sleep(POLL_SECONDS)
