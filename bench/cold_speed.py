"""A large blob that nobody holds, from an upstream without any limit, plain and over TLS: what a miss costs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import servers
from bench.clients import download, first_bytes
from bench.content import Content
from bench.lineup import Lineup, Settings, expect_ok
from bench.load import Load
from bench.machine import level
from bench.report import DOCKER_REGISTRY, MIRROR, NGINX, Bar, Report, Row, at_least, at_most
from bench.servers import Server

BLOB_BYTES = 1_000_000_000
QUICK_BLOB_BYTES = 250_000_000
SMALL_BYTES = 1000
# Blobs that one connection asks for, one after another: what a mirror adds that is in use.
SERIES, SERIES_BYTES = 20, 1_000_000
# Of memory, for all that is not the blob.
SPARE_BYTES = 256 << 20
READERS = (1, 2, 16)
LIMIT = 180.0
MEGA, GIGA = 1e6, 1e9


@dataclass(frozen=True)
class _Upstream:
    """An upstream of this measurement, and the bars of what is fetched from it.

    Attributes:
        throughput: at least so many times nginx's.
        cpu: at most so many times nginx's.
    """

    name: str
    url: str
    ca_file: Path | None
    throughput: float
    cpu: float


def measure(settings: Settings) -> Report:
    """nginx is the upstream: it sends faster than any cache can take. Each round has a new blob for each server."""
    size = QUICK_BLOB_BYTES if settings.quick else BLOB_BYTES
    report = Report(f"Cold blob at full speed: {size / MEGA:.0f} MB, upstream unlimited")
    report.notes.append("nginx checks no digest; the mirror's body ends only after its digest has matched.")
    content = Content(settings.home / "content")
    with ExitStack() as stack:
        certificate = servers.certificate(settings.home)
        origin = stack.enter_context(servers.nginx_origin(settings.home, content.root, certificate))
        plain = _Upstream("plain", f"http://127.0.0.1:{origin.port}", None, 1.0, 1.5)
        tls = _Upstream("TLS", f"https://localhost:{origin.tls_port}", certificate, 0.45, 2.2)
        for upstream in (plain, tls):
            _rounds(settings, content, upstream, origin.port, report, size)
    return report


def _rounds(settings: Settings, content: Content, upstream: _Upstream, direct: int, report: Report, size: int) -> None:
    """All rounds with one upstream."""
    rows = {count: _rows(upstream, count) for count in READERS if count == 1 or upstream.ca_file is None}
    bars = [Bar(4, False, "<= 4 ms")]
    first = Row(f"{upstream.name}: first byte later than the direct one", "ms", bars=bars)
    in_series = Row(f"{upstream.name}, {SERIES} blobs of 1 MB in a row: the same", "ms", bars=bars)
    with Lineup(_starters(settings, upstream)) as lineup:
        # Servers in use have connections to their upstream.
        small = content.blob(SMALL_BYTES)
        lineup.each(lambda _, server: expect_ok(server, small))
        for number in range(settings.rounds()):
            for count, (throughput, cpu) in rows.items():

                def turn(name: str, server: Server, count: int = count, throughput: Row = throughput, cpu: Row = cpu) -> None:
                    blob = content.blob(size)
                    level(size + SPARE_BYTES)
                    at_origin = min(download(Load(direct, [blob], limit=LIMIT)).first_byte[0] for _ in range(2))
                    before = server.child.cpu_seconds()
                    outcome = download(Load(server.port, [blob] * count, limit=LIMIT))
                    throughput.add(name, size / MEGA / max(outcome.done))
                    cpu.add(name, (server.child.cpu_seconds() - before) / (size / GIGA))
                    if count == 1:
                        first.add(name, (outcome.first_byte[0] - at_origin) * 1000)
                    (content.root / blob.removeprefix("/")).unlink()

                lineup.each(turn, number)

            def series(name: str, server: Server) -> None:
                blobs = [content.blob(SERIES_BYTES) for _ in range(SERIES)]
                level(SPARE_BYTES)
                at_origin = median(first_bytes(direct, blobs))
                in_series.add(name, (median(first_bytes(server.port, blobs)) - at_origin) * 1000)

            lineup.each(series, number)
        report.absent |= lineup.absent
    report.rows += [row for pair in rows.values() for row in pair] + [first, in_series]


def _rows(upstream: _Upstream, count: int) -> tuple[Row, Row]:
    what = f"{upstream.name}, {count} reader{'s' if count > 1 else ''}"
    throughput, cpu = Row(f"{what}: throughput", "MB/s"), Row(f"{what}: CPU", "s/GB")
    if count == 1:
        throughput.bars, cpu.bars = [at_least(upstream.throughput, NGINX)], [at_most(upstream.cpu, NGINX)]
    return throughput, cpu


def _starters(settings: Settings, upstream: _Upstream) -> dict[str, Callable[[], AbstractContextManager[Server]]]:
    ca_file = upstream.ca_file
    registry = {"ca_file": str(ca_file)} if ca_file else {}
    starters: dict[str, Callable[[], AbstractContextManager[Server]]] = {
        MIRROR: lambda: servers.mirror_of(settings.home, upstream.url, settings.workers, registry),
        NGINX: lambda: servers.nginx_proxy_of(settings.home, upstream.url, settings.workers, ca_file),
    }
    if ca_file is None:
        starters[DOCKER_REGISTRY] = lambda: servers.docker_registry_of(settings.home, upstream.url)
    return starters
