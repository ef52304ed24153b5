"""Cold content asked of three nodes of a cluster at once: time, upstream's bytes and requests, and first bytes."""

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from bench import docker, nodes, servers
from bench.clients import download
from bench.content import REPOSITORY, Content
from bench.lineup import Settings, settle
from bench.load import Load
from bench.process import NotTakenError
from bench.report import MIRROR, Bar, Report, Row, at_most
from tests.e2e.harness.process import HarnessError
from tests.e2e.harness.skopeo import Skopeo

# Of upstream in all. All nodes and clients share one machine: with a faster upstream the wait for its cores would be measured.
RATE = 25e6
LAYERS, LAYER_BYTES = 8, 8_000_000
# Blobs of which the first bytes are timed.
SERIES, SERIES_BYTES = 20, 1_000_000
LIMIT = 120.0
ROUNDS = 2
SINGLE = "one mirror"
MEGA = 1e6


def measure(settings: Settings) -> Report:
    """An image by skopeo through each node, in turn with another one through one mirror; then blobs by plain requests."""
    what = f"{nodes.NODES} nodes of {nodes.WORKERS} workers, {LAYERS * LAYER_BYTES / MEGA:.0f} MB by all at once"
    report = Report(f"Cluster: {what}, upstream {RATE / MEGA:.0f} MB/s", columns=(MIRROR, SINGLE))
    wall = Row("cold image by skopeo", "s", bars=[at_most(1.15, SINGLE)])
    sent = Row("upstream bytes / size", "x", bars=[Bar(1.005, False, "1.00")])
    manifests = Row("upstream GETs of manifests", "", bars=[Bar(1, False, "1")])
    first = Row("first byte of the last node after that of the first", "ms", bars=[Bar(10, False, "<= 10 ms")])
    report.rows = [wall, sent, manifests, first]
    content, number = Content(settings.home / "content"), 0
    with (
        servers.origin(settings.home, content.root, RATE) as origin,
        nodes.redis(settings.home) as redis,
        nodes.nodes(settings.home, origin.port, redis) as cluster,
        servers.mirror(settings.home, origin.port, nodes.WORKERS) as single,
    ):
        for _ in range(settings.rounds(ROUNDS)):
            for name, mirrors in ((MIRROR, cluster), (SINGLE, [single])):
                number += 1
                size = docker.add_image(content, number, LAYERS, LAYER_BYTES)
                os.sync()
                before = origin.counters()
                wall.add(name, _pull(settings.home / f"pull-{number}", [mirror.port for mirror in mirrors], number))
                after = settle(origin, LIMIT)
                sent.add(name, (after["bytes"] - before["bytes"]) / size)
                manifests.add(name, after["manifests"] - before["manifests"])
            first.add(MIRROR, median(_delays(content, [mirror.port for mirror in cluster])) * 1000)
    return report


def _pull(home: Path, ports: Sequence[int], tag: int) -> float:
    """Seconds until a skopeo for each port has the image."""
    clients = [Skopeo(home / f"skopeo-{port}", port) for port in ports]
    source = f"docker://docker.io/{REPOSITORY}:{tag}"
    began = time.monotonic()
    try:
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(client.archive, source, f"dir:{home}/{id(client)}") for client in clients]:
                done.result(LIMIT)
    except (HarnessError, TimeoutError) as error:
        raise NotTakenError(f"skopeo did not copy {source}: {error}") from error
    took = time.monotonic() - began
    shutil.rmtree(home)
    return took


def _delays(content: Content, ports: list[int]) -> list[float]:
    """Seconds from the first byte that any of the ports sends to the last one's, for blobs asked of all at once."""
    delays = []
    for blob in content.blobs(SERIES, SERIES_BYTES):
        found = download(Load(0, [blob] * len(ports), limit=LIMIT, ports=ports)).first_byte
        delays.append(max(found) - min(found))
    return delays
