"""A large blob that the mirror and nginx hold, read over TLS by 1 and 8 clients."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import servers
from bench.clients import read_over_tls
from bench.content import Content
from bench.lineup import Lineup, Settings, settle, wait_rechecked
from bench.report import MIRROR, NGINX, Report, Row, at_least, at_most
from bench.servers import Server

CLIENTS = (1, 8)
BLOB_BYTES = 256 << 20
SECONDS = 3.0
ROUNDS = 5
LIMIT = 60.0
GIGA = 1e9


def measure(settings: Settings) -> Report:
    """Both encrypt in user space; the client decrypts, which takes as much again of the same cores."""
    report = Report("Hot blob over TLS: 256 MiB held on disk")
    content = Content(settings.home / "content")
    blob = content.blob(BLOB_BYTES)
    certificate = servers.certificate(settings.home)
    with ExitStack() as stack:
        origin = stack.enter_context(servers.origin(settings.home, content.root))
        starters = {
            MIRROR: lambda: servers.tls_mirror(settings.home, origin.port, settings.workers, certificate),
            NGINX: lambda: _nginx(settings, content.root, certificate),
        }
        lineup = stack.enter_context(Lineup(starters))
        # Long enough for the mirror to fetch it, and to serve it several times.
        lineup.each(lambda _, server: _discard(server, blob))
        settle(origin, LIMIT)
        lineup.each(lambda _, server: wait_rechecked(server, LIMIT))
        for count in CLIENTS:
            throughput = Row(f"{count} at once: throughput", "GB/s", bars=[at_least(0.9, NGINX)])
            cpu = Row(f"{count} at once: CPU", "s/GB", bars=[at_most(1.2, NGINX)])
            report.rows += [throughput, cpu]

            def turn(name: str, server: Server, count: int = count, rows: tuple[Row, Row] = (throughput, cpu)) -> None:
                before = server.child.cpu_seconds()
                amount, seconds = read_over_tls(server.port, blob, SECONDS, count)
                rows[0].add(name, amount / GIGA / seconds)
                rows[1].add(name, (server.child.cpu_seconds() - before) / (amount / GIGA))

            for number in range(settings.rounds(ROUNDS)):
                lineup.each(turn, number)
        report.absent = lineup.absent
    return report


@contextmanager
def _nginx(settings: Settings, content: Path, certificate: Path) -> Iterator[Server]:
    with servers.nginx_origin(settings.home, content, certificate) as server:
        yield Server(server.tls_port, server.child)


def _discard(server: Server, path: str) -> None:
    read_over_tls(server.port, path, SECONDS, 1)
