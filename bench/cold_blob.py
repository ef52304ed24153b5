"""16 clients ask at the same moment for one blob that nobody holds, and the upstream has little bandwidth."""

from contextlib import ExitStack
from statistics import median

from bench import servers
from bench.clients import download
from bench.content import Content
from bench.lineup import Lineup, Settings, settle
from bench.load import Load
from bench.machine import level
from bench.report import DOCKER_REGISTRY, MIRROR, NGINX, Bar, Report, Row
from bench.servers import Server

CLIENTS = 16
BANDWIDTH = 50e6
BLOB_BYTES = 200_000_000
QUICK_BLOB_BYTES = 50_000_000
LIMIT = 240.0


def measure(settings: Settings) -> Report:
    """A new blob in every round; the servers keep running, each with its own store."""
    size = QUICK_BLOB_BYTES if settings.quick else BLOB_BYTES
    report = Report(f"Cold blob: {CLIENTS} clients, {size / 1e6:.0f} MB, upstream at {BANDWIDTH / 1e6:.0f} MB/s in total")
    fetched = Row("upstream bytes / size", "x", bars=[Bar(1.005, False, "1.00")])
    last = Row("last client / (size / rate)", "x", bars=[Bar(1.05, False, "<= 1.05")])
    first = Row("median first byte", "ms", bars=[Bar(50, False, "< 50 ms")])
    report.rows = [fetched, last, first]
    content = Content(settings.home / "content")
    with ExitStack() as stack:
        origin = stack.enter_context(servers.origin(settings.home, content.root, rate=BANDWIDTH))
        lineup = stack.enter_context(
            Lineup(
                {
                    MIRROR: lambda: servers.mirror(settings.home, origin.port, settings.workers),
                    NGINX: lambda: servers.nginx_proxy(settings.home, origin.port, settings.workers),
                    DOCKER_REGISTRY: lambda: servers.docker_registry(settings.home, origin.port),
                }
            )
        )
        for number in range(settings.rounds()):
            blob = content.blob(size)

            def turn(name: str, server: Server, blob: str = blob) -> None:
                level(2 * size)
                before = settle(origin, LIMIT)["bytes"]
                outcome = download(Load(server.port, [blob] * CLIENTS, limit=LIMIT))
                fetched.add(name, (settle(origin, LIMIT)["bytes"] - before) / size)
                last.add(name, max(outcome.done) * BANDWIDTH / size)
                first.add(name, median(outcome.first_byte) * 1000)

            lineup.each(turn, number)
        report.absent = lineup.absent
    return report
