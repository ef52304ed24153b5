"""Cold blobs and pulls over one line to an upstream: `python -m bench.far_line JOB`, with a Job as JSON, prints a Report as JSON.

Each line is measured by a process of its own in a network namespace of its own, so that several are measured side by side.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import median
from types import FrameType

from bench import docker, servers
from bench.clients import download
from bench.content import Content
from bench.line import RATE, Line, far_origin, open_loopback
from bench.lineup import Lineup, Settings, expect_ok, or_absent, rotated, settle
from bench.load import Load
from bench.plot import Chart, Panel
from bench.process import die_with_parent
from bench.report import DIRECT, DOCKER_REGISTRY, MIRROR, NGINX, Bar, Report, Row
from bench.servers import Origin, Server

CONNECTIONS, QUICK_CONNECTIONS = (1, 2, 4, 8), (1, 4)
CLIENTS, QUICK_CLIENTS = (1, 16), (1,)
KEY = "connections_per_blob"
# What one connection is expected to take for a blob, and how large it may be for that.
SECONDS = 4.0
MIN_BLOB_BYTES, MAX_BLOB_BYTES = 4_000_000, 40_000_000
# Where each connection is limited: a mirror measures one of them first.
LIMITED_BLOB_BYTES = 64_000_000
# The bar for several connections is that of a large blob, over them and over one.
LARGE_BLOB_BYTES, QUICK_LARGE_BLOB_BYTES = 400_000_000, 64_000_000
COMPARED = (1, 4)
# Smaller blobs than a mirror fetches in parallel by default, or the slow lines would take hours.
PARALLEL_FROM = "1MiB"
SMALL_BYTES = 1000
SEGMENT_BYTES = 1448
LAYERS, LAYER_BYTES = 6, 4_000_000
PULLS = 3
LIMIT = 180.0
MEGA, MILLI = 1e6, 1e3


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        number: of the line, which tells its images and the server that begins.
    """

    home: str
    quick: bool
    line: Line
    number: int

    @property
    def settings(self) -> Settings:
        """Of the measurement."""
        return Settings(Path(self.home), self.quick)

    @property
    def connections(self) -> tuple[int, ...]:
        """Of the mirrors that are compared."""
        return QUICK_CONNECTIONS if self.quick else CONNECTIONS

    @property
    def clients(self) -> tuple[int, ...]:
        """At once, in turn."""
        return QUICK_CLIENTS if self.quick else CLIENTS


def columns(job: Job) -> tuple[str, ...]:
    """The names of the servers, in order."""
    return (*map(mirror_with, job.connections), NGINX, DOCKER_REGISTRY, DIRECT)


def mirror_with(connections: int) -> str:
    """The name of the mirror that fetches a blob over so many connections."""
    return f"{MIRROR} {connections}"


def connection_speed(line: Line) -> float:
    """Bytes per second that one connection is expected to get."""
    rate = min(RATE, line.connection_rate or RATE)
    if line.loss:
        # Mathis et al., "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997.
        rate = min(rate, SEGMENT_BYTES / line.round_trip * 1.22 / sqrt(line.loss))
    return rate


def blob_bytes(line: Line) -> int:
    """Size of a blob for which one connection takes some SECONDS, or more where each is limited."""
    if _is_limited(line):
        return LIMITED_BLOB_BYTES
    return int(min(max(connection_speed(line) * SECONDS, MIN_BLOB_BYTES), MAX_BLOB_BYTES))


def measure(job: Job) -> Report:
    """The line has servers of its own, which begin with empty stores; each figure has a new blob."""
    line, names = job.line, columns(job)
    report = Report(str(line), columns=names)
    report.chart = Chart("Time to the last byte of a cold blob, by round trip to the upstream", "s", names)
    content = Content(job.settings.home / "content")
    with ExitStack() as stack:
        origin = stack.enter_context(far_origin(job.settings.home, content.root, line))
        lineup = stack.enter_context(Lineup(_starters(job, origin)))
        small = content.blob(SMALL_BYTES)
        # A server in use has connections to its upstream.
        lineup.each(lambda _, server: expect_ok(server, small))
        for clients in job.clients:
            _measure_downloads(job, content, origin, lineup, clients, report)
        report.absent = {f"{name}, {line}": reason for name, reason in lineup.absent.items()}
        if _is_limited(line):
            report.rows += _large_blob(job, content, origin, lineup)
            report.rows.append(_pulls(job, content, origin, report))
    return report


def _is_limited(line: Line) -> bool:
    """Nothing but the upstream's limit slows a connection down."""
    return bool(line.connection_rate and not line.loss)


def _measure_downloads(job: Job, content: Content, origin: Origin, lineup: Lineup, clients: int, report: Report) -> None:
    size, people = blob_bytes(job.line), f"{clients} client{'s' if clients > 1 else ''}"
    what = f"{job.line}, {size / MEGA:.0f} MB, {people}"
    first, last = Row(f"{what}: first byte", "ms"), Row(f"{what}: last byte", "s")
    report.rows += [first, last]
    blob = content.blob(size)

    def turn(name: str, server: Server) -> None:
        settle(origin, LIMIT)
        os.sync()
        outcome = download(Load(server.port, [blob] * clients, limit=LIMIT, host=server.host))
        first.add(name, median(outcome.first_byte) * MILLI)
        last.add(name, max(outcome.done))

    lineup.each(turn, job.number)
    group = f"{job.line.round_trip * MILLI:g} ms ({size / MEGA:.0f} MB)"
    assert report.chart
    medians = {name: median(values) for name, values in last.rounds.items()}
    report.chart.panels.append(Panel(f"{job.line.conditions}, {people}", {group: medians}))


def _large_blob(job: Job, content: Content, origin: Origin, lineup: Lineup) -> list[Row]:
    """When one client has all of it, and how late it has a quarter, a half, three quarters and all against one connection."""
    size = QUICK_LARGE_BLOB_BYTES if job.quick else LARGE_BLOB_BYTES
    blob = content.blob(size)
    one, several = map(mirror_with, COMPARED)
    what = f"{job.line}, {size / MEGA:.0f} MB"
    last = Row(f"{what}: last byte", "s", bars=[Bar(0.35, False, f"<= 0.35 x {one}", one, of=several)])
    slowest = Row(f"{what}: a quarter of it, at worst", f"x {one}", bars=[Bar(0.35, False, "<= 0.35", of=several)])
    quarters: dict[str, list[float]] = {}

    def turn(name: str, server: Server) -> None:
        if name in (one, several):
            settle(origin, LIMIT)
            os.sync()
            outcome = download(Load(server.port, [blob], limit=LIMIT, host=server.host))
            last.add(name, outcome.done[0])
            quarters[name] = outcome.quarters[0]

    lineup.each(turn, job.number)
    if len(quarters) == 2:
        slowest.add(several, max(fast / slow for fast, slow in zip(quarters[several], quarters[one], strict=True)))
    return [last, slowest]


def _pulls(job: Job, content: Content, origin: Origin, report: Report) -> Row:
    """Pulls by dockerd straight from the upstream, and through a mirror as it is by default.

    How fast a new connection becomes differs by seconds from one to the next. Each pull is by a daemon and a mirror of its own:
    one that is used again has connections to its registry.
    """
    size = LAYERS * LAYER_BYTES / MEGA
    row = Row(f"{job.line}: docker pull, {LAYERS} layers, {size:.0f} MB", "s")
    with or_absent(report.absent, f"docker pull, {job.line}"):
        for number in range(job.settings.rounds(PULLS)):
            tag = job.number * PULLS + number
            docker.add_image(content, tag, LAYERS, LAYER_BYTES)
            for name in rotated((DIRECT, mirror_with(4)), number):
                row.add(name, _pull(job, origin, name, tag))
    return row


def _pull(job: Job, origin: Origin, name: str, tag: int) -> float:
    """Seconds for one pull."""
    registry = f"http://{origin.host}:{origin.port}"
    with ExitStack() as stack:
        if name != DIRECT:
            mirror = stack.enter_context(servers.mirror_of(job.settings.home, registry, job.settings.workers))
            registry = f"http://127.0.0.1:{mirror.port}"
        daemon = stack.enter_context(docker.daemon(job.settings, f"{name.replace(' ', '-')}-{tag}", registry))
        os.sync()
        return docker.pull(daemon, str(tag))


def _starters(job: Job, origin: Origin) -> dict[str, Callable[[], AbstractContextManager[Server]]]:
    home, workers = job.settings.home, job.settings.workers
    url = f"http://{origin.host}:{origin.port}"

    def mirror(connections: int) -> Callable[[], AbstractContextManager[Server]]:
        return lambda: servers.mirror_of(home, url, workers, downloads={KEY: connections, "parallel_from": PARALLEL_FROM})

    return {
        **{mirror_with(count): mirror(count) for count in job.connections},
        NGINX: lambda: servers.nginx_proxy_of(home, url, workers),
        DOCKER_REGISTRY: lambda: servers.docker_registry_of(home, url),
        DIRECT: lambda: _direct(origin),
    }


@contextmanager
def _direct(origin: Origin) -> Iterator[Server]:
    yield origin


def main() -> None:
    """Measure and print; SIGTERM, which comes when the parent ends too, ends the servers and removes their devices."""
    signal.signal(signal.SIGTERM, _terminate)
    # On Ctrl-C the parent sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGTERM)
    job = json.loads(sys.argv[1])
    open_loopback()
    print(json.dumps(asdict(measure(Job(**{**job, "line": Line(**job["line"])})))))


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # A second one would interrupt the ending of the servers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
