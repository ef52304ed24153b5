"""A cold pull by a real dockerd, which downloads three layers at a time, from an upstream that is 100 ms away."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

from bench import docker, servers
from bench.content import Content
from bench.lineup import Settings, rotated, settle
from bench.report import MIRROR, Bar, Report, Row
from bench.servers import Origin
from tests.e2e.harness.dockerd import Dockerd

LATENCY = 0.1
LAYERS = 12
LAYER_BYTES = 4_000_000
# What one connection gets, and what all of them get together.
CONNECTION_RATE = 4e6
TOTAL_RATE = 12e6
OFF, ON = "off", "on"


@dataclass
class Pulls:
    """Times in seconds of the pulls over one upstream; one list has as many as another.

    Attributes:
        what: how the upstream is limited.
        bars: for the time with prefetch over that without.
        cold: by whether there was prefetch.
        held: of images that the mirror holds, which is what dockerd needs by itself.
        fetched: bytes from upstream for each cold pull, over the image's size.
    """

    what: str
    bars: list[Bar]
    cold: dict[str, list[float]] = field(default_factory=lambda: {OFF: [], ON: []})
    held: list[float] = field(default_factory=list)
    fetched: list[float] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """The figures."""
        times = {f"pull, prefetch {name}, {self.what}": self.cold[name] for name in (OFF, ON)}
        times[f"pull, held, {self.what}"] = self.held
        ratio = [fast / slow for fast, slow in zip(self.cold[ON], self.cold[OFF], strict=True)]
        return [
            *(Row(what, "s", {MIRROR: seconds}) for what, seconds in times.items()),
            Row(f"time with / without, {self.what}", "x", {MIRROR: ratio}, self.bars),
            Row(f"upstream bytes / size, {self.what}", "x", {MIRROR: self.fetched}, [Bar(1.005, False, "1.00")]),
        ]


def measure(settings: Settings) -> Report:
    """Two mirrors that differ in this only, each with a dockerd of its own; a new image in every round."""
    title = f"Prefetch: dockerd pulls {LAYERS} layers of {LAYER_BYTES / 1e6:.0f} MB, cold, upstream {LATENCY * 1000:.0f} ms away"
    report = Report(title)
    content = Content(settings.home / "content")
    # The second is what prefetch can do nothing for: it shows what it costs there.
    limits = [
        (Pulls(f"{CONNECTION_RATE / 1e6:.0f} MB/s per connection", [Bar(0.5, False, "<= 0.5")]), 0.0, CONNECTION_RATE),
        (Pulls(f"{TOTAL_RATE / 1e6:.0f} MB/s in total", [Bar(1.02, False, "<= 1.02")]), TOTAL_RATE, 0.0),
    ]
    number = 0
    for pulls, rate, connection_rate in limits:
        with ExitStack() as stack:
            origin = stack.enter_context(servers.origin(settings.home, content.root, rate, connection_rate, LATENCY))
            daemons = {name: stack.enter_context(_daemon(settings, origin, prefetch=name == ON)) for name in (OFF, ON)}
            for turn in range(settings.rounds(5)):
                number += 1
                size = docker.add_image(content, number, LAYERS, LAYER_BYTES)
                for name in rotated(daemons, turn):
                    _cold_and_held(daemons[name], origin, str(number), size, name, pulls)
        report.rows += pulls.rows()
    report.notes.append(
        f"{median(pulls.held):.1f} s of each pull are dockerd's own: it unpacks to vfs, which copies every layer below."
    )
    return report


@contextmanager
def _daemon(settings: Settings, origin: Origin, *, prefetch: bool) -> Iterator[Dockerd]:
    """A mirror and a daemon that pulls through it."""
    with (
        servers.mirror(settings.home, origin.port, settings.workers, {"prefetch": prefetch}) as server,
        docker.daemon(settings, str(server.port), f"http://127.0.0.1:{server.port}") as daemon,
    ):
        yield daemon


def _cold_and_held(daemon: Dockerd, origin: Origin, tag: str, size: int, name: str, pulls: Pulls) -> None:
    os.sync()
    before = origin.counters()["bytes"]
    pulls.cold[name].append(docker.pull(daemon, tag))
    pulls.fetched.append((settle(origin, docker.LIMIT)["bytes"] - before) / size)
    pulls.held.append(docker.pull(daemon, tag))
