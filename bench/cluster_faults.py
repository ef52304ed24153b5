"""Pauses that clients of a cluster see while a node or Redis fails."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from bench import nodes, servers
from bench.clients import download, first_bytes
from bench.content import Content
from bench.lineup import Settings
from bench.load import Load
from bench.process import NotTakenError
from bench.report import MIRROR, Bar, Report, Row
from bench.servers import Origin

# Slow enough for a failure in the middle.
BLOB_BYTES, RATE = 60_000_000, 20e6
# The owner fails once so much has come from upstream.
FAILS_AT = 0.3
SMALL_BYTES, SMALL_BLOBS = 100_000, 20
ROUNDS = 1
LIMIT, START_SECONDS, POLL_SECONDS = 60.0, 10.0, 0.01
FAILURES = {"kill -9": (signal.SIGKILL, Bar(0.5, False, "<= 0.5 s")), "SIGSTOP": (signal.SIGSTOP, Bar(3.5, False, "<= 3.5 s"))}


def measure(settings: Settings) -> Report:
    """The node that fetches a blob fails while two others pull it; then Redis stops answering while small blobs are pulled."""
    report = Report(
        f"Cluster: failures while a blob of {BLOB_BYTES / 1e6:.0f} MB arrives at {RATE / 1e6:.0f} MB/s", columns=(MIRROR,)
    )
    content = Content(settings.home / "content")
    pauses = {
        name: Row(f"owner {name}: longest pause of the others' clients", "s", bars=[bar]) for name, (_, bar) in FAILURES.items()
    }
    # Not of one that is stopped: its system takes up to 32 MB more from upstream, which nobody reads.
    sent = Row("owner kill -9: upstream bytes / size", "x", bars=[Bar(1.1, False, "<= 1.1")])
    first = Row(
        "Redis stopped: the slowest first byte in the first second, later than before", "s", bars=[Bar(0.75, False, "<= 0.75 s")]
    )
    after = Row("Redis stopped: median first byte after that, later than before", "ms", bars=[Bar(5, False, "<= 5 ms")])
    for _ in range(settings.rounds(ROUNDS)):
        for name, (number, _) in FAILURES.items():
            pause, ratio = _owner_fails(settings, content, number)
            pauses[name].add(MIRROR, pause)
            if number == signal.SIGKILL:
                sent.add(MIRROR, ratio)
        slowest, usual = _redis_stops(settings, content)
        first.add(MIRROR, slowest)
        after.add(MIRROR, usual * 1000)
    report.rows = [*pauses.values(), sent, first, after]
    return report


def _owner_fails(settings: Settings, content: Content, number: int) -> tuple[float, float]:
    """The longest pause in seconds, and what upstream has sent, as a share of the blob."""
    blob = content.blob(BLOB_BYTES)
    os.sync()
    with (
        servers.origin(settings.home, content.root, RATE) as origin,
        nodes.redis(settings.home) as redis,
        nodes.nodes(settings.home, origin.port, redis) as (owner, *others),
        ThreadPoolExecutor() as pool,
    ):
        # What its own client gets is not looked at.
        first = pool.submit(download, Load(owner.port, [blob], limit=LIMIT))
        _wait(origin, 1)
        pulls = pool.submit(download, Load(0, [blob] * len(others), limit=LIMIT, ports=[node.port for node in others]))
        _wait(origin, int(FAILS_AT * BLOB_BYTES))
        owner.child.signal(number)
        try:
            outcome = pulls.result(LIMIT)
        finally:
            owner.child.signal(signal.SIGKILL)
        first.exception(LIMIT)
        return max(outcome.pauses), origin.counters()["bytes"] / BLOB_BYTES


def _redis_stops(settings: Settings, content: Content) -> tuple[float, float]:
    """By how much first bytes are later: the slowest of the first second, and the median after it."""
    blobs = [content.blobs(SMALL_BLOBS, SMALL_BYTES) for _ in range(2)]
    os.sync()
    with (
        servers.origin(settings.home, content.root) as origin,
        nodes.redis(settings.home) as redis,
        nodes.nodes(settings.home, origin.port, redis, 1) as (node,),
    ):
        usual = median(first_bytes(node.port, blobs[0]))
        redis.child.signal(signal.SIGSTOP)
        stopped, found = time.monotonic(), {True: [0.0], False: list[float]()}
        for blob in content.blobs(3 * SMALL_BLOBS, SMALL_BYTES) + blobs[1]:
            is_early = time.monotonic() - stopped < 1.0
            found[is_early] += first_bytes(node.port, [blob])
        if not found[False]:
            raise NotTakenError("no blob was pulled after the first second")
        return max(found[True]) - usual, median(found[False]) - usual


def _wait(origin: Origin, count: int) -> None:
    """Wait until upstream has sent so many bytes."""
    deadline = time.monotonic() + START_SECONDS
    while origin.counters()["bytes"] < count:
        if time.monotonic() > deadline:
            raise NotTakenError(f"upstream has not sent {count} bytes within {START_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
