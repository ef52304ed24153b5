"""Blobs that nobody holds from an upstream that is far away, limits each connection, or lies behind a line that loses packets."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import median

from bench import docker, servers
from bench.clients import download
from bench.content import Content
from bench.line import RATE, Line, far_origin, means
from bench.lineup import Lineup, Settings, expect_ok, or_absent, settle
from bench.load import Load
from bench.plot import Chart, Panel
from bench.report import DIRECT, DOCKER_REGISTRY, MIRROR, NGINX, Bar, Report, Row
from bench.servers import Origin, Server

ROUND_TRIPS = (0.005, 0.1, 0.25)
CONNECTION_RATES = (0.0, 4e6)
LOSSES = (0.0, 0.001)
LINES = [Line(trip, loss, rate) for loss in LOSSES for rate in CONNECTION_RATES for trip in ROUND_TRIPS]
QUICK_LINES = [Line(0.1, 0.0, 4e6), Line(0.1, 0.001)]
CONNECTIONS, QUICK_CONNECTIONS = (1, 2, 4, 8), (1, 4)
CLIENTS, QUICK_CLIENTS = (1, 16), (1,)
KEY = "connections_per_blob"
# What one connection is expected to take for a blob, and how large it may be for that.
SECONDS = 4.0
MIN_BLOB_BYTES, MAX_BLOB_BYTES = 4_000_000, 40_000_000
# Where each connection is limited, and the bar for several connections applies: a mirror measures one of them first.
LIMITED_BLOB_BYTES = 64_000_000
# Smaller blobs than a mirror fetches in parallel by default, or the slow lines would take hours.
PARALLEL_FROM = "1MiB"
SMALL_BYTES = 1000
SEGMENT_BYTES = 1448
LAYERS, LAYER_BYTES = 6, 4_000_000
LIMIT = 180.0
MEGA, MILLI = 1e6, 1e3


def mirror_with(connections: int) -> str:
    """The name of the mirror that fetches a blob over so many connections."""
    return f"{MIRROR} {connections}"


@dataclass(frozen=True)
class _Plan:
    """What is measured over every line."""

    settings: Settings
    content: Content
    connections: tuple[int, ...]
    clients: tuple[int, ...]


def measure(settings: Settings) -> Report:
    """Each line has servers of its own, which begin with empty stores; each figure has a new blob."""
    quick = settings.quick
    connections = QUICK_CONNECTIONS if quick else CONNECTIONS
    names = tuple(mirror_with(count) for count in connections)
    columns = (*names, NGINX, DOCKER_REGISTRY, DIRECT)
    report = Report("Far upstream: time to the first and the last byte", columns=columns)
    report.chart = Chart("Time to the last byte of a cold blob, by round trip to the upstream", "s", columns)
    report.notes.append(f"Delay and loss are made by {means()}; all connections together get {RATE / MEGA:.0f} MB/s.")
    report.notes.append(f"{MIRROR} N: {KEY}: N, parallel_from: {PARALLEL_FROM}. Sizes differ: compare within a row.")
    content = Content(settings.home / "content")
    plan = _Plan(settings, content, connections, QUICK_CLIENTS if quick else CLIENTS)
    for number, line in enumerate(QUICK_LINES if quick else LINES):
        with or_absent(report.absent, str(line)), _own_home(settings) as own:
            _measure_line(replace(plan, settings=own), line, number, report)
    return report


def blob_bytes(line: Line) -> int:
    """Size of a blob for which one connection takes some SECONDS, or more where each is limited."""
    if line.connection_rate and not line.loss:
        return LIMITED_BLOB_BYTES
    rate = min(RATE, line.connection_rate or RATE)
    if line.loss:
        # Mathis et al., "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997.
        rate = min(rate, SEGMENT_BYTES / line.round_trip * 1.22 / sqrt(line.loss))
    return int(min(max(rate * SECONDS, MIN_BLOB_BYTES), MAX_BLOB_BYTES))


def _measure_line(plan: _Plan, line: Line, number: int, report: Report) -> None:
    size = blob_bytes(line)
    with ExitStack() as stack:
        origin = stack.enter_context(far_origin(plan.settings.home, plan.content.root, line))
        lineup = stack.enter_context(Lineup(_starters(plan, origin)))
        small = plan.content.blob(SMALL_BYTES)
        # A server in use has connections to its upstream.
        lineup.each(lambda _, server: expect_ok(server, small))
        for clients in plan.clients:
            what = f"{line}, {size / MEGA:.0f} MB, {clients} client{'s' if clients > 1 else ''}"
            first, last = Row(f"{what}: first byte", "ms"), Row(f"{what}: last byte", "s")
            if line.connection_rate and not line.loss and clients == 1:
                last.bars = [Bar(0.35, False, f"<= 0.35 x {mirror_with(1)}", mirror_with(1), of=mirror_with(4))]
            report.rows += [first, last]
            blob = plan.content.blob(size)

            def turn(
                name: str, server: Server, blob: str = blob, rows: tuple[Row, Row] = (first, last), clients: int = clients
            ) -> None:
                settle(origin, LIMIT)
                os.sync()
                outcome = download(Load(server.port, [blob] * clients, limit=LIMIT, host=server.host))
                rows[0].add(name, median(outcome.first_byte) * MILLI)
                rows[1].add(name, max(outcome.done))

            lineup.each(turn, number)
            _draw(report, line, clients, last)
        report.absent |= {f"{name}, {line}": reason for name, reason in lineup.absent.items()}
        if line.connection_rate and not line.loss:
            report.rows.append(_pulls(plan, origin, line, number, report))


def _draw(report: Report, line: Line, clients: int, last: Row) -> None:
    """Put a row into the panel of its conditions, which differ by the round trip only."""
    assert report.chart
    panels = report.chart.panels
    title = f"{line.conditions}, {clients} client{'s' if clients > 1 else ''}"
    panel = next((panel for panel in panels if panel.title == title), None)
    if panel is None:
        panel = Panel(title)
        panels.append(panel)
    name = f"{line.round_trip * MILLI:g} ms ({blob_bytes(line) / MEGA:.0f} MB)"
    panel.groups[name] = {column: median(values) for column, values in last.rounds.items()}


def _pulls(plan: _Plan, origin: Origin, line: Line, number: int, report: Report) -> Row:
    """A pull by dockerd straight from the upstream, and one through a mirror as it is by default."""
    size = LAYERS * LAYER_BYTES / MEGA
    row = Row(f"{line}: docker pull, {LAYERS} layers, {size:.0f} MB", "s")
    url = f"http://{origin.host}:{origin.port}"
    docker.add_image(plan.content, number, LAYERS, LAYER_BYTES)
    with or_absent(report.absent, f"docker pull, {line}"), ExitStack() as stack:
        mirror = stack.enter_context(servers.mirror_of(plan.settings.home, url, plan.settings.workers))
        for name, registry in ((DIRECT, url), (mirror_with(4), f"http://127.0.0.1:{mirror.port}")):
            daemon = stack.enter_context(docker.daemon(plan.settings, name.replace(" ", "-"), registry))
            os.sync()
            row.add(name, docker.pull(daemon, str(number)))
    return row


def _starters(plan: _Plan, origin: Origin) -> dict[str, Callable[[], AbstractContextManager[Server]]]:
    home, workers = plan.settings.home, plan.settings.workers
    url = f"http://{origin.host}:{origin.port}"

    def mirror(connections: int) -> Callable[[], AbstractContextManager[Server]]:
        return lambda: servers.mirror_of(home, url, workers, downloads={KEY: connections, "parallel_from": PARALLEL_FROM})

    return {
        **{mirror_with(count): mirror(count) for count in plan.connections},
        NGINX: lambda: servers.nginx_proxy_of(home, url, workers),
        DOCKER_REGISTRY: lambda: servers.docker_registry_of(home, url),
        DIRECT: lambda: _direct(origin),
    }


@contextmanager
def _direct(origin: Origin) -> Iterator[Server]:
    yield origin


@contextmanager
def _own_home(settings: Settings) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(dir=settings.home, ignore_cleanup_errors=True) as home:
        yield replace(settings, home=Path(home))
