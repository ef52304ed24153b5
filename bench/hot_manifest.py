"""A manifest that every server holds, asked for by digest and by tag as fast as it is answered."""

from contextlib import ExitStack

from bench import servers
from bench.clients import requests_per_second
from bench.content import MANIFEST_TYPE, Content
from bench.lineup import Lineup, Settings, warm
from bench.report import DOCKER_REGISTRY, MIRROR, NGINX, Report, Row, at_least
from bench.servers import Server

CONNECTIONS = 32
SECONDS = 3.0
HEADERS = {"Accept": MANIFEST_TYPE}


def measure(settings: Settings) -> Report:
    """By tag the mirror answers within its ttl; docker-registry asks its origin, as it always does."""
    report = Report(f"Hot manifest: {CONNECTIONS} kept-alive connections")
    content = Content(settings.home / "content")
    by_digest, by_tag = content.manifest("latest")
    digest = by_digest.rpartition("/")[2]
    with ExitStack() as stack:
        origin = stack.enter_context(servers.origin(settings.home, content.root))
        lineup = stack.enter_context(
            Lineup(
                {
                    MIRROR: lambda: servers.mirror(settings.home, origin.port, settings.workers),
                    NGINX: lambda: servers.nginx_files(settings.home, content.root, settings.workers, digest),
                    DOCKER_REGISTRY: lambda: servers.docker_registry(settings.home, origin.port),
                }
            )
        )
        for what, path, factor in (("by digest", by_digest, 8), ("by tag", by_tag, 25)):
            row = Row(what, "requests/s", bars=[at_least(factor, DOCKER_REGISTRY), at_least(0.5, NGINX)])

            def turn(name: str, server: Server, path: str = path, row: Row = row) -> None:
                warm(server, path, origin, HEADERS)
                row.add(name, requests_per_second(server.port, path, SECONDS, CONNECTIONS, HEADERS))

            for number in range(settings.rounds()):
                lineup.each(turn, number)
            report.rows.append(row)
        report.absent = lineup.absent
    return report
