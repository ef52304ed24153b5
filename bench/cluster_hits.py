"""What a node held, served by it and by a mirror without a cluster: throughput and requests per second."""

from contextlib import ExitStack

from bench import nodes, servers
from bench.clients import download, requests_per_second
from bench.content import MANIFEST_TYPE, Content
from bench.lineup import Lineup, Settings, expect_ok, wait_rechecked, warm
from bench.load import Load
from bench.machine import one_core
from bench.report import MIRROR, Report, Row, at_least, at_most
from bench.servers import Server

ALONE = "no cluster"
BLOB_BYTES = 256 << 20
CLIENTS, CONNECTIONS = 8, 32
SECONDS, ROUNDS = 1.0, 7
LIMIT = 60.0
GIGA = 1e9


def measure(settings: Settings) -> Report:
    """Both take turns within each round, on the same core as their client."""
    report = Report("Cluster: hits of a node, beside those of a mirror without a cluster", columns=(MIRROR, ALONE))
    content = Content(settings.home / "content")
    blob, manifest = content.blob(BLOB_BYTES), content.manifest("1")[0]
    with one_core(), ExitStack() as stack:
        origin = stack.enter_context(servers.origin(settings.home, content.root))
        redis = stack.enter_context(nodes.redis(settings.home))
        starters = {
            MIRROR: lambda: nodes.node(settings.home, origin.port, redis),
            ALONE: lambda: servers.mirror(settings.home, origin.port, settings.workers),
        }
        lineup = stack.enter_context(Lineup(starters))
        lineup.each(lambda _, server: warm(server, blob, origin))
        lineup.each(lambda _, server: expect_ok(server, blob))
        lineup.each(lambda _, server: wait_rechecked(server, LIMIT))
        lineup.each(lambda _, server: warm(server, manifest, origin))
        report.rows = _rounds(lineup, blob, manifest, settings.rounds(ROUNDS))
        report.absent = lineup.absent
    return report


def _rounds(lineup: Lineup, blob: str, manifest: str, count: int) -> list[Row]:
    throughput = Row(f"blob, {CLIENTS} clients: throughput", "GB/s", bars=[at_least(0.98, ALONE)])
    cpu = Row(f"blob, {CLIENTS} clients: CPU", "s/GB", bars=[at_most(1.02, ALONE)])
    requests = Row("manifest by digest", "1/s", bars=[at_least(0.98, ALONE)])

    def turn(name: str, server: Server) -> None:
        before = server.child.cpu_seconds()
        outcome = download(Load(server.port, [blob] * CLIENTS, SECONDS))
        throughput.add(name, outcome.bytes / GIGA / outcome.seconds)
        cpu.add(name, (server.child.cpu_seconds() - before) / (outcome.bytes / GIGA))
        requests.add(name, requests_per_second(server.port, manifest, SECONDS, CONNECTIONS, {"Accept": MANIFEST_TYPE}))

    for number in range(count):
        lineup.each(turn, number)
    return [throughput, cpu, requests]
