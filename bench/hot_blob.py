"""A large blob that every server holds, pulled by 1, 8 and 32 clients: throughput and CPU time."""

from contextlib import ExitStack

from bench import servers
from bench.clients import download
from bench.content import Content
from bench.lineup import Lineup, Settings, expect_ok, wait_rechecked, warm
from bench.load import Load
from bench.report import DOCKER_REGISTRY, MIRROR, NGINX, Report, Row, at_least, at_most
from bench.servers import Server

CLIENTS = (1, 8, 32)
BLOB_BYTES = 256 << 20
SECONDS = 2.0
ROUNDS = 5
LIMIT = 60.0
GIGA = 1e9


def measure(settings: Settings) -> Report:
    """nginx serves the file by sendfile; the mirror and docker-registry have pulled it before."""
    report = Report("Hot blob: 256 MiB held on disk, pulled again and again")
    content = Content(settings.home / "content")
    blob = content.blob(BLOB_BYTES)
    with ExitStack() as stack:
        origin = stack.enter_context(servers.origin(settings.home, content.root))
        lineup = stack.enter_context(
            Lineup(
                {
                    MIRROR: lambda: servers.mirror(settings.home, origin.port, settings.workers),
                    NGINX: lambda: servers.nginx_files(settings.home, content.root, settings.workers),
                    DOCKER_REGISTRY: lambda: servers.docker_registry(settings.home, origin.port),
                }
            )
        )
        lineup.each(lambda _, server: warm(server, blob, origin))
        lineup.each(lambda _, server: expect_ok(server, blob))
        lineup.each(lambda _, server: wait_rechecked(server, LIMIT))
        busiest = max((_clients(lineup, report, blob, count, settings) for count in CLIENTS), default=0.0)
        report.absent = lineup.absent
    report.notes.append(f"The load generator was busy for at most {busiest:.0%} of one core.")
    return report


def _clients(lineup: Lineup, report: Report, blob: str, count: int, settings: Settings) -> float:
    throughput = Row(f"{count} at once: throughput", "GB/s", bars=[at_least(1.0, NGINX)])
    cpu = Row(f"{count} at once: CPU", "s/GB", bars=[at_most(1.0, NGINX)])
    busy = [0.0]

    def turn(name: str, server: Server) -> None:
        before = server.child.cpu_seconds()
        outcome = download(Load(server.port, [blob] * count, SECONDS))
        spent = server.child.cpu_seconds() - before
        throughput.add(name, outcome.bytes / GIGA / outcome.seconds)
        cpu.add(name, spent / (outcome.bytes / GIGA))
        busy.append(outcome.cpu_seconds / outcome.seconds)

    for number in range(settings.rounds(ROUNDS)):
        lineup.each(turn, number)
    report.rows += [throughput, cpu]
    return max(busy)
