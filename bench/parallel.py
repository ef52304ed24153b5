"""One large cold blob from an upstream that limits every connection: four connections against one."""

from contextlib import ExitStack

from bench import servers
from bench.clients import download
from bench.content import Content
from bench.lineup import Lineup, Settings
from bench.load import Load
from bench.machine import level
from bench.report import MIRROR, Bar, Report, Row
from bench.servers import Server

CONNECTIONS = 4
CONNECTION_RATE = 10e6
BLOB_BYTES = 160_000_000
QUICK_BLOB_BYTES = 64_000_000
LIMIT = 120.0
KEY = "connections_per_blob"


def measure(settings: Settings) -> Report:
    """Two mirrors that differ in the number of connections only; the others cannot do this at all."""
    size = QUICK_BLOB_BYTES if settings.quick else BLOB_BYTES
    title = f"Parallel fetch: {size / 1e6:.0f} MB, upstream at {CONNECTION_RATE / 1e6:.0f} MB/s per connection"
    times = {str(count): Row(f"time, {KEY}: {count}", "s") for count in (1, CONNECTIONS)}
    quarters: dict[str, list[list[float]]] = {name: [] for name in times}
    content = Content(settings.home / "content")
    with ExitStack() as stack:
        origin = stack.enter_context(servers.origin(settings.home, content.root, connection_rate=CONNECTION_RATE))

        def start(count: int) -> Lineup:
            starters = {str(count): lambda: servers.mirror(settings.home, origin.port, settings.workers, {KEY: count})}
            return stack.enter_context(Lineup(starters))

        lineups = [start(1), start(CONNECTIONS)]
        for number in range(settings.rounds()):
            blob = content.blob(size)

            def turn(name: str, server: Server, blob: str = blob) -> None:
                level(2 * size)
                outcome = download(Load(server.port, [blob], limit=LIMIT))
                times[name].add(MIRROR, outcome.done[0])
                quarters[name].append(outcome.quarters[0])

            for lineup in lineups if number % 2 else lineups[::-1]:
                lineup.each(turn)
    reasons = {reason for lineup in lineups for reason in lineup.absent.values()}
    report = _report(title, list(times.values()), reasons)
    if not reasons:
        report.rows.append(_slowest_quarter(*quarters.values()))
    return report


def _slowest_quarter(one: list[list[float]], several: list[list[float]]) -> Row:
    """How late the client has a quarter, a half, three quarters and all, against a single connection; the worst of these."""
    row = Row(f"time to a quarter of it, at worst, {CONNECTIONS} connections / 1", "x", bars=[Bar(0.35, False, "<= 0.35")])
    for slow, fast in zip(one, several, strict=True):
        row.add(MIRROR, max(quick / long for quick, long in zip(fast, slow, strict=True)))
    return row


def _report(title: str, rows: list[Row], reasons: set[str]) -> Report:
    one, several = (row.rounds.get(MIRROR, []) for row in rows)
    ratio = Row(f"time, {CONNECTIONS} connections / 1", "x", bars=[Bar(0.35, False, "<= 0.35")])
    if not reasons:
        ratio.rounds[MIRROR] = [fast / slow for fast, slow in zip(several, one, strict=True)]
    report = Report(title, [*rows, ratio])
    for reason in reasons:
        report.absent[MIRROR] = reason
    return report
