"""Small ranges all over a large blob that nobody holds, as clients read it that pull lazily."""

import random
import time
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException

from bench import servers
from bench.content import Content
from bench.line import Line, far_origin
from bench.lineup import Lineup, Settings, expect_ok, settle
from bench.process import NotTakenError
from bench.report import MIRROR, Bar, Report, Row
from bench.servers import Origin, Server

KEY = "fill"
BLOB_BYTES = 1_000_000_000
QUICK_BLOB_BYTES = 250_000_000
RANGES = 40
RANGE_BYTES = 64_000
# What a mirror fetches at least: it marks what it has by chunks.
CHUNK_BYTES = 1 << 20
SMALL_BYTES = 1000
# As much as TCP's window of a connection grows by before what a chunk needs fits into it.
WARM_BYTES = 4_000_000
ROUND_TRIP = 0.1
REST = 2.0
LIMIT = 60.0
MILLI = 1e3


def measure(settings: Settings) -> Report:
    """A mirror that fetches ranges only; a new blob in each round."""
    size = QUICK_BLOB_BYTES if settings.quick else BLOB_BYTES
    what = f"{RANGES} ranges of {RANGE_BYTES / 1e3:.0f} kB of a {size / 1e6:.0f} MB blob"
    report = Report(f"Lazy pull: {what}, {ROUND_TRIP * MILLI:.0f} ms away")
    fetched = Row("upstream bytes / (1.5 x what was read + a chunk for each range)", "x", bars=[Bar(1.0, False, "<= 1")])
    first = Row("first range, over a connection in use", "round trips", bars=[Bar(2.5, False, "<= 2.5")])
    cold = Row("first range, over a connection that has rested", "round trips")
    chunk = Row("the same and its chunk before it, from the upstream itself over a new one", "round trips")
    every = Row("all ranges, one after the other", "s")
    report.rows = [fetched, first, cold, chunk, every]
    content = Content(settings.home / "content")
    with ExitStack() as stack:
        origin = stack.enter_context(far_origin(settings.home, content.root, Line(ROUND_TRIP)))
        url = f"http://{origin.host}:{origin.port}"
        starters = {MIRROR: lambda: servers.mirror_of(settings.home, url, settings.workers, {KEY: "ranges"})}
        lineup = stack.enter_context(Lineup(starters))
        small = content.blob(SMALL_BYTES)
        # A mirror in use has connections to its upstream.
        lineup.each(lambda _, server: expect_ok(server, small))
        for number in range(settings.rounds()):

            def turn(name: str, server: Server, number: int = number) -> None:
                blob, other, warm = content.blob(size), content.blob(size), content.blob(WARM_BYTES)
                # As lazy pullers do: the manifest states the size of the blob.
                expect_ok(server, content.image_of(blob, f"{number}a"))
                expect_ok(server, content.image_of(other, f"{number}b"))
                starts = random.Random(number).sample(range(size - RANGE_BYTES), RANGES)
                chunk.add(name, _direct(origin, blob, starts[0]) / ROUND_TRIP)
                settle(origin, LIMIT)
                # Longer than TCP keeps the window of a connection without traffic.
                time.sleep(REST)
                cold.add(name, _read(server, other, starts[:1])[0] / ROUND_TRIP)
                expect_ok(server, warm)
                before = origin.counters()["bytes"]
                began = time.monotonic()
                times = _read(server, blob, starts)
                every.add(name, time.monotonic() - began)
                first.add(name, times[0] / ROUND_TRIP)
                amount = settle(origin, LIMIT)["bytes"] - before
                fetched.add(name, amount / (1.5 * RANGES * RANGE_BYTES + RANGES * CHUNK_BYTES))

            lineup.each(turn)
        report.absent = lineup.absent
    return report


def _direct(origin: Origin, path: str, start: int) -> float:
    """Seconds until a range has come from the origin itself with what is before it in its chunk, over a new connection.

    The slow start of TCP makes most of it.
    """
    chunk = start // CHUNK_BYTES * CHUNK_BYTES
    connection = HTTPConnection(origin.host, origin.port, timeout=LIMIT)
    try:
        connection.connect()
        began = time.monotonic()
        connection.request("GET", path, headers={"Range": f"bytes={chunk}-{start + RANGE_BYTES - 1}"})
        connection.getresponse().read()
        return time.monotonic() - began
    except (OSError, HTTPException) as error:
        raise NotTakenError(f"the origin did not answer a range: {error}") from error
    finally:
        connection.close()


def _read(server: Server, path: str, starts: list[int]) -> list[float]:
    """Read a range from each start; the seconds that each took."""
    connection = HTTPConnection(server.host, server.port, timeout=LIMIT)
    times = []
    try:
        for start in starts:
            began = time.monotonic()
            connection.request("GET", path, headers={"Range": f"bytes={start}-{start + RANGE_BYTES - 1}"})
            response = connection.getresponse()
            if response.status != 206 or len(response.read()) != RANGE_BYTES:
                raise NotTakenError(f"a range was answered with {response.status}")
            times.append(time.monotonic() - began)
    except (OSError, HTTPException) as error:
        raise NotTakenError(f"a range was not answered: {error}") from error
    finally:
        connection.close()
    return times
