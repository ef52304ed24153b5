"""The servers of one measurement, taking turns; one that fails drops out with its reason, the rest go on."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Self

from bench.clients import get
from bench.process import NotTakenError
from bench.servers import Mirror, Origin, Server

WARM_SECONDS = 120.0
POLL_SECONDS = 0.2
RECHECKED = re.compile(rb'registry_mirror_scrubbed_blobs_total{result="ok"} [1-9]')

Starter = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Settings:
    """How long and how often to measure, and the directory for everything that is written."""

    home: Path
    quick: bool
    workers: int = 1

    def rounds(self, usual: int = 3) -> int:
        """Rounds to take: `usual` of them, or a single one that only shows the order of magnitude."""
        return 1 if self.quick else usual


class Lineup:
    """Starts the servers on entering and ends them on leaving; `absent` tells who is not there, and why."""

    def __init__(self, starters: Mapping[str, Starter]) -> None:
        self.absent: dict[str, str] = {}
        self._starters = dict(starters)
        self._running: dict[str, Server] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for name, start in self._starters.items():
            with or_absent(self.absent, name):
                self._running[name] = self._stack.enter_context(start())
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def each(self, act: Callable[[str, Server], None], number: int = 0) -> None:
        """Let `act` measure every server still present once; `number` is that of the round."""
        for name in rotated(self._running, number):
            if name not in self.absent:
                with or_absent(self.absent, name):
                    act(name, self._running[name])


def rotated(names: Iterable[str], number: int) -> list[str]:
    """The names beginning with a different one in each round, so that none is always first."""
    ordered = list(names)
    shift = number % len(ordered) if ordered else 0
    return ordered[shift:] + ordered[:shift]


@contextmanager
def or_absent(absent: dict[str, str], name: str) -> Iterator[None]:
    """Note in `absent` why something could not be measured, and go on."""
    try:
        yield
    except NotTakenError as error:
        absent[name] = str(error)


def warm(server: Server, path: str, origin: Origin, headers: Mapping[str, str] | None = None) -> None:
    """Pull until the answer costs the origin no more body bytes. Raises NotTakenError if that never comes."""
    deadline = time.monotonic() + WARM_SECONDS
    while True:
        before = origin.counters()
        try:
            status, beginning = get(server.port, path, headers)
        except (OSError, HTTPException) as error:
            raise NotTakenError(f"GET {path} failed: {error}") from error
        if status != 200:
            raise NotTakenError(f"GET {path} answered {status}: {beginning[:200]!r}")
        after = origin.counters()
        if not after["transfers"] and after["bytes"] == before["bytes"]:
            return
        if time.monotonic() > deadline:
            raise NotTakenError(f"{path} was still fetched from the origin after {WARM_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def wait_rechecked(server: Server, limit: float) -> None:
    """Wait until a mirror has hashed a blob that was pulled from it twice, which it does once an hour and beside its clients."""
    deadline = time.monotonic() + limit
    while isinstance(server, Mirror) and not RECHECKED.search(get(server.admin, "/metrics")[1]):
        server.child.check_alive()
        if time.monotonic() > deadline:
            raise NotTakenError(f"no blob was hashed again within {limit:.0f} s")
        time.sleep(POLL_SECONDS)


def settle(origin: Origin, limit: float) -> dict[str, int]:
    """Wait until the origin sends nothing any more (docker-registry fetches on); its counters then."""
    deadline = time.monotonic() + limit
    while (counters := origin.counters())["transfers"]:
        if time.monotonic() > deadline:
            raise NotTakenError(f"the origin was still sending after {limit:.0f} s")
        time.sleep(POLL_SECONDS)
    return counters


def expect_ok(server: Server, path: str) -> None:
    """Pull something once. Raises NotTakenError if that fails."""
    status, beginning = get(server.port, path, host=server.host)
    if status != 200:
        raise NotTakenError(f"GET {path} answered {status}: {beginning[:200]!r}")
