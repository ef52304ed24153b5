"""A long line to the upstream: the upstream in a network namespace of its own, with delay and loss on the way there.

The kernel's netem makes the delay where it has that, a relay between two TUN devices where it has not. Where neither can be
had (who runs this is not root), the upstream itself waits before it answers: no slow start, no loss, and connecting is free.

The namespace belongs to the upstream's process and the devices to processes started here: they go when these end, which
they do with this one.
"""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from bench import servers
from bench.clients import get
from bench.process import Child, NotTakenError
from bench.servers import ROOT, Origin

# All connections together, in bytes per second: less than a relay in Python can carry.
RATE = 40e6
COMMAND_SECONDS = 10.0
READY_SECONDS = 20.0
POLL_SECONDS = 0.05
# Of packets: a bottleneck's buffer, which nothing here shall be.
QUEUE = 100_000
NETEM, RELAY, WAITING = "netem", "a relay between TUN devices", "waiting in the upstream, without TCP's own"


@dataclass(frozen=True)
class Line:
    """What lies between the mirror and its upstream.

    Attributes:
        round_trip: seconds.
        loss: probability for each packet, both ways.
        connection_rate: bytes per second that the upstream gives each connection; 0: no limit.
    """

    round_trip: float
    loss: float = 0.0
    connection_rate: float = 0.0

    @property
    def conditions(self) -> str:
        """All but the round trip."""
        limit = f"{self.connection_rate / 1e6:g} MB/s per connection" if self.connection_rate else "no limit"
        return limit + (f", {self.loss:.1%} lost" if self.loss else "")

    def __str__(self) -> str:
        return f"{self.round_trip * 1000:g} ms, {self.conditions}"


@functools.cache
def means() -> str:
    """What makes delay and loss on this machine."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return WAITING
    if shutil.which("tc") and _succeeds("unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"):
        return NETEM
    return RELAY if os.access("/dev/net/tun", os.R_OK | os.W_OK) else WAITING


def own_network() -> tuple[str, ...]:
    """A command that runs another one in a network namespace of its own, where there can be one; see `open_loopback`."""
    return () if means() == WAITING else ("unshare", "--net", "--")


def open_loopback() -> None:
    """Let processes of a new network namespace reach each other. Raises NotTakenError if that fails."""
    if means() != WAITING:
        _run("ip", "link", "set", "lo", "up")


@contextmanager
def far_origin(home: Path, content: Path, line: Line) -> Iterator[Origin]:
    """Serve `content` at the other end of `line`. Raises NotTakenError if there can be no such line."""
    if means() == WAITING:
        if line.loss:
            raise NotTakenError("packets can only be lost in a network namespace, which takes root, and netem or /dev/net/tun")
        with servers.origin(home, content, RATE, line.connection_rate, line.round_trip) as origin:
            yield origin
        return
    with ExitStack() as stack:
        # A machine of its own, which does not compete with what is measured.
        within = ("nice", "-n", "-10", "unshare", "--net", "--")
        origin = stack.enter_context(servers.origin(home, content, RATE, line.connection_rate, within=within))
        near, far = stack.enter_context(_netem(line) if means() == NETEM else _relay(home, line))
        origin.host = _connect(near, far, origin.child.pid)
        if means() == NETEM:
            _delay(line, near)
            _delay(line, far, origin.child.pid)
        _wait_answer(origin)
        yield origin


@contextmanager
def _relay(home: Path, line: Line) -> Iterator[tuple[str, str]]:
    argv = [sys.executable, "-m", "bench.relay", str(line.round_trip / 2), str(line.loss)]
    with Child(argv, home / "relay", cwd=ROOT) as child:
        near, far = child.first_line(READY_SECONDS).split()
        yield near, far


@contextmanager
def _netem(_line: Line) -> Iterator[tuple[str, str]]:
    near, far = f"bench{os.getpid()}n", f"bench{os.getpid()}f"
    # A packet is a segment, so that one that is lost is not a whole burst.
    segments = ("gso_max_segs", "1")
    _run("ip", "link", "add", near, *segments, "type", "veth", "peer", "name", far, *segments)
    try:
        yield near, far
    finally:
        _succeeds("ip", "link", "delete", near)


def _connect(near: str, far: str, pid: int) -> str:
    """Give both ends an address, the far one in the namespace of `pid`; the far one's address."""
    # RFC 2544's addresses, which nobody has; four for each process that measures.
    subnet = os.getpid() % (1 << 15) * 4
    prefix = f"198.{18 + (subnet >> 16)}.{subnet >> 8 & 255}"
    ends = f"{prefix}.{(subnet & 255) + 1}", f"{prefix}.{(subnet & 255) + 2}"
    _run("ip", "link", "set", far, "netns", str(pid))
    for device, address, inside in ((near, ends[0], ()), (far, ends[1], _inside(pid))):
        _run(*inside, "ip", "address", "add", f"{address}/30", "dev", device)
        _run(*inside, "ip", "link", "set", device, "txqueuelen", str(QUEUE), "up")
    return ends[1]


def _delay(line: Line, device: str, pid: int = 0) -> None:
    delay, loss = f"{line.round_trip / 2 * 1e6:.0f}us", f"{line.loss * 100:g}%"
    inside = _inside(pid) if pid else ()
    _run(*inside, "tc", "qdisc", "add", "dev", device, "root", "netem", "delay", delay, "loss", loss, "limit", str(QUEUE))


def _inside(pid: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{pid}/ns/net", "--")


def _wait_answer(origin: Origin) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        origin.child.check_alive()
        try:
            get(origin.port, "/v2/", host=origin.host)
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise NotTakenError(f"the upstream cannot be reached at {origin.host}: {error}") from error
        else:
            return
        time.sleep(POLL_SECONDS)


def _run(*argv: str) -> None:
    try:
        subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise NotTakenError(f"{' '.join(argv)} failed: {error.stderr.strip()}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NotTakenError(f"{' '.join(argv)} failed: {error}") from error


def _succeeds(*argv: str) -> bool:
    try:
        return not subprocess.run(argv, capture_output=True, timeout=COMMAND_SECONDS, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return False
