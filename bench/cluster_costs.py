"""What a cluster and a bucket cost a node: CPU to send and to upload, slower hits meanwhile, memory, calls for leases."""

import http.client
import os
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import quantiles

from bench import nodes, servers
from bench.clients import LOCAL, download, first_bytes
from bench.content import Content
from bench.leases import ask_times
from bench.lineup import Settings, expect_ok
from bench.load import Load
from bench.machine import level
from bench.process import Child, NotTakenError
from bench.report import MIRROR, Bar, Report, Row
from bench.servers import Mirror, free_port
from tests.support.certificates import Authority

BLOBS, BLOB_BYTES = 4, 128_000_000
ROUNDS = 2
HIT_BYTES, HITS, HITS_AT_ONCE = 20_000, 3000, 100
START_SECONDS, REST_SECONDS, LIMIT, POLL_SECONDS = 20.0, 3.0, 60.0, 0.1
LEASE_CLIENTS, ASKED_PER_SECOND, LEASE_SECONDS = 100, 10.0, 5.0
# For the parts of an upload.
MEMORY_BYTES = 256 << 20
MEGA, GIGA = 1e6, 1e9
ALONE = "without"


def measure(settings: Settings) -> Report:
    """One worker for each node, so that all of its costs are one process's."""
    report = Report("Cluster: what it costs a node", columns=(MIRROR, ALONE))
    send = Row("sending to another node: CPU", "s/GB", bars=[Bar(0.25, False, "<= 0.25")])
    upload = Row("upload to a bucket over TLS: CPU", "s/GB", bars=[Bar(0.8, False, "<= 0.8")])
    hits = Row("hits during an upload: p99 of the first byte", "ms", bars=[Bar(1.1, False, f"<= 1.1 x {ALONE}", ALONE)])
    memory = Row("an idle worker with cluster and bucket: more resident", "MB", bars=[Bar(15, False, "<= 15 MB")])
    leases = Row(f"{LEASE_CLIENTS} clients of leases, {LEASE_CLIENTS * ASKED_PER_SECOND:.0f} calls/s: p99", "ms")
    leases.bars = [Bar(5, False, "<= 5 ms")]
    report.rows = [send, upload, hits, memory, leases]
    bench = _Bench(settings)
    for _ in range(settings.rounds(ROUNDS)):
        send.add(MIRROR, bench.send())
        upload.add(MIRROR, bench.upload())
        for name, value in bench.hits().items():
            hits.add(name, value)
        memory.add(MIRROR, bench.resident())
        with nodes.redis(settings.home) as redis:
            times = ask_times(redis.port, LEASE_CLIENTS, ASKED_PER_SECOND, LEASE_SECONDS)
        leases.add(MIRROR, _p99(times) * 1000)
    return report


class _Spent:
    """CPU seconds of a mirror from now on, without those that it takes at rest: a slow receiver makes these no cost of a byte."""

    def __init__(self, mirror: Mirror) -> None:
        began = mirror.child.cpu_seconds()
        time.sleep(REST_SECONDS)
        self._child, self._cpu, self._began = mirror.child, mirror.child.cpu_seconds(), time.monotonic()
        self._rest = (self._cpu - began) / REST_SECONDS

    def seconds(self) -> float:
        """The seconds so far."""
        return self._child.cpu_seconds() - self._cpu - self._rest * (time.monotonic() - self._began)


class _Bench:
    """The measurements, each with servers of its own."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home
        self._content = Content(settings.home / "content")
        self._total = BLOBS * BLOB_BYTES
        self._port = free_port()
        # The client of the bucket takes no certificate that is its own authority.
        authority = Authority(settings.home / "tls")
        self._certificate, self._tls = authority.certificate, authority.issue("bucket")
        self._key = settings.home / "key"
        self._key.write_text("id\nsecret\n")
        os.chmod(self._key, 0o600)

    def send(self) -> float:
        """CPU seconds of a node for each GB of held blobs that another one fetches from it."""
        blobs = self._content.blobs(BLOBS, BLOB_BYTES)
        os.sync()
        with (
            servers.origin(self._home, self._content.root) as origin,
            nodes.redis(self._home) as redis,
            nodes.node(self._home, origin.port, redis) as holder,
            nodes.node(self._home, origin.port, redis) as other,
        ):
            download(Load(holder.port, blobs, limit=LIMIT))
            # Its lease says that it holds them once their checksums are known.
            time.sleep(REST_SECONDS)
            sent, spent = origin.counters()["bytes"], _Spent(holder)
            for blob in blobs:
                download(Load(other.port, [blob], limit=LIMIT))
            seconds = spent.seconds()
            if origin.counters()["bytes"] != sent:
                raise NotTakenError("blobs came from upstream instead of the node that has them")
        self._remove(blobs)
        return seconds / (self._total / GIGA)

    def upload(self) -> float:
        """CPU seconds of a mirror for each GB that it uploads."""
        with self._owing() as (mirror, _), ExitStack() as stack:
            # The mirror still writes down what it has received.
            time.sleep(REST_SECONDS)
            spent = _Spent(mirror)
            stack.enter_context(self._sink())
            for _ in self._while_uploading():
                time.sleep(POLL_SECONDS)
            return spent.seconds() / (self._total / GIGA)

    def hits(self) -> dict[str, float]:
        """The 99th percentile of the first bytes of hits, in milliseconds, during an upload, and after it."""
        with self._owing() as (mirror, hit), ExitStack() as stack:
            during = list[float]()
            stack.enter_context(self._sink())
            for count in self._while_uploading():
                found = _hits(mirror, hit, HITS_AT_ONCE)
                during += found if count else []
            # Not before it: the mirror was still looking after what it had received.
            time.sleep(REST_SECONDS)
            alone = _hits(mirror, hit, HITS)
            return {ALONE: _p99(alone) * 1000, MIRROR: _p99(during) * 1000}

    def resident(self) -> float:
        """By how many MB an idle worker is larger in a cluster with a bucket than without."""
        with (
            servers.origin(self._home, self._content.root) as origin,
            nodes.redis(self._home) as redis,
            self._sink(),
            nodes.node(self._home, origin.port, redis, objects=self._objects()) as node,
            servers.mirror(self._home, origin.port, 1) as alone,
        ):
            time.sleep(REST_SECONDS)
            return (node.child.resident_bytes() - alone.child.resident_bytes()) / MEGA

    @contextmanager
    def _owing(self) -> Iterator[tuple[Mirror, str]]:
        """A mirror that has blobs which it uploads as soon as the bucket answers, and the path of a small one."""
        blobs, hit = self._content.blobs(BLOBS, BLOB_BYTES), self._content.blob(HIT_BYTES)
        os.sync()
        with servers.origin(self._home, self._content.root) as origin:
            registries = {"docker.io": {"upstreams": [f"http://{LOCAL}:{origin.port}"]}}
            with servers.serving_mirror(self._home, {"registries": registries, "objects": self._objects()}) as mirror:
                for path in [*blobs, hit]:
                    expect_ok(mirror, path)
                level(MEMORY_BYTES)
                yield mirror, hit
        self._remove(blobs)

    def _objects(self) -> dict[str, object]:
        endpoint = {"endpoint": f"https://localhost:{self._port}", "ca_file": str(self._certificate)}
        return {"url": "s3://bench", **endpoint, "access_key_file": str(self._key)}

    @contextmanager
    def _sink(self) -> Iterator[None]:
        """The bucket."""
        argv = [sys.executable, "-m", "bench.sink", str(self._port), *map(str, self._tls)]
        with Child(argv, self._home / "sink.log", cwd=servers.ROOT) as child:
            child.first_line(START_SECONDS)
            yield

    def _while_uploading(self) -> Iterator[int]:
        """The bytes that the bucket has taken, again and again until it has all."""
        deadline = time.monotonic() + LIMIT
        while (count := self._uploaded()) < self._total:
            if time.monotonic() > deadline:
                raise NotTakenError(f"the bucket has {count} of {self._total} bytes after {LIMIT:.0f} s")
            yield count

    def _uploaded(self) -> int:
        context = ssl.create_default_context(cafile=str(self._certificate))
        connection = http.client.HTTPSConnection("localhost", self._port, timeout=START_SECONDS, context=context)
        try:
            connection.request("GET", "/control")
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            (self._content.root / path.removeprefix("/")).unlink()


def _hits(mirror: Mirror, path: str, count: int) -> list[float]:
    # The first one opens the connection.
    return first_bytes(mirror.port, [path] * (count + 1))[1:]


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]
