"""Resident memory while hundreds of different blobs that nobody holds are downloaded at the same time."""

import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from bench import servers
from bench.clients import download
from bench.content import Content
from bench.lineup import Settings, or_absent, rotated
from bench.load import Load
from bench.process import NotTakenError, ResidentPeak
from bench.report import DOCKER_REGISTRY, MIRROR, NGINX, Bar, Report, Row
from bench.servers import Origin, Server

DOWNLOADS = {MIRROR: 500, NGINX: 500, DOCKER_REGISTRY: 200}
# One address may start half as many downloads.
MAX_UPSTREAM_CONNECTIONS = 1100
BLOB_BYTES = 4 << 20
QUICK_BLOB_BYTES = 1 << 20
TRANSFER_SECONDS = 10.0
QUICK_TRANSFER_SECONDS = 4.0
LIMIT = 120.0
MEGA = 1e6


def measure(settings: Settings) -> Report:
    """A fresh process with an empty store for every figure; the origin is slow enough for all to overlap."""
    size = QUICK_BLOB_BYTES if settings.quick else BLOB_BYTES
    rate = size / (QUICK_TRANSFER_SECONDS if settings.quick else TRANSFER_SECONDS)
    counts = ", ".join(f"{name} {count}" for name, count in DOWNLOADS.items())
    report = Report(f"Memory: distinct cold blobs of {size >> 20} MiB at once ({counts})")
    resting = Row("resident before", "MB")
    resident = Row("resident at most", "MB", bars=[Bar(150, False, "< 150 MB")])
    under_way = Row("upstream transfers at once", "")
    report.rows = [resting, resident, under_way]
    content = Content(settings.home / "content")
    blobs = content.blobs(max(DOWNLOADS.values()), size)

    def turn(name: str, server: Server, origin: Origin) -> None:
        count = DOWNLOADS[name]
        before = server.child.resident_bytes()
        with ResidentPeak(server.child) as peak:
            download(Load(server.port, blobs[:count], limit=LIMIT))
        at_once = origin.counters()["most_transfers"]
        if at_once < count:
            raise NotTakenError(f"only {at_once} of {count} downloads were under way at once")
        resting.add(name, before / MEGA)
        resident.add(name, peak.bytes / MEGA)
        under_way.add(name, at_once)

    for number in range(settings.rounds()):
        for name in rotated((name for name in DOWNLOADS if name not in report.absent), number):
            os.sync()
            with (
                or_absent(report.absent, name),
                tempfile.TemporaryDirectory(dir=settings.home) as home,
                # One origin for each server: it counts the most transfers that it has ever seen at once.
                servers.origin(Path(home), content.root, connection_rate=rate) as origin,
                _start(name, Path(home), origin.port, settings.workers) as server,
            ):
                turn(name, server, origin)
    return report


def _start(name: str, home: Path, upstream: int, workers: int) -> AbstractContextManager[Server]:
    if name == MIRROR:
        downloads = {"max_upstream_connections": MAX_UPSTREAM_CONNECTIONS}
        return servers.mirror(home, upstream, workers, downloads)
    if name == NGINX:
        return servers.nginx_proxy(home, upstream, workers)
    return servers.docker_registry(home, upstream)
