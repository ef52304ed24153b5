"""The cap holds: three times as much is pulled through a store as it may hold, by several clients at once."""

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tests.e2e.harness.client import get_manifest, stream
from tests.e2e.harness.hub import Hub
from tests.e2e.harness.mirror import Mirror, start_mirror

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MEGABYTE = 1 << 20
CLIENTS = 8
REPOSITORY = "library/many"
IMAGES = 64


@dataclass(frozen=True)
class Scale:
    """How much is pulled through how much.

    Attributes:
        cap: MiB that the store may hold.
    """

    workers: int
    cap: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of the layers of an image. The first layer is that of four images."""
        return self.cap * 8192 + 1, self.cap * 30 * 1024, self.cap * 12 * 1024 + 4095, 70_000


WHOLE = [pytest.param(Scale(workers, 1024), marks=pytest.mark.full, id=f"1GiB-{workers}") for workers in (1, 2)]


@pytest.fixture(scope="module", params=[*WHOLE, pytest.param(Scale(2, 512), id="512MiB-2")])
def scale(request: pytest.FixtureRequest) -> Scale:
    return request.param


@pytest.fixture(scope="module")
def hub(directory: Path, numbers: Iterator[int], scale: Scale) -> Iterator[Hub]:
    """The upstream, with images of three times the cap together."""
    with closing(Hub(directory / f"hub-{next(numbers)}")) as started:
        yield started


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], hub: Hub, scale: Scale) -> Iterator[Mirror]:
    """A mirror with a small store."""
    storage = {"max_size": f"{scale.cap}MiB", "min_free": "0"}
    name = directory / f"mirror-{next(numbers)}"
    with closing(start_mirror(name, [hub.url], tag_ttl="0s", workers=scale.workers, storage=storage)) as started:
        yield started


class Gauge:
    """Measures a store without a pause: `highest` is the most bytes that its files had at one moment."""

    def __init__(self, store: Path) -> None:
        self.highest = 0
        self.samples = 0
        self._store = store
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        before = self._walk()
        while not self._end.is_set():
            now = self._walk()
            # What was there both times was there together, between the two walks.
            together = sum(min(size, now[inode]) for inode, size in before.items() if inode in now)
            self.highest = max(self.highest, together)
            self.samples += 1
            before = now

    def _walk(self) -> dict[int, int]:
        found = {}
        for below in ("blobs", "partial", "tmp"):
            for directory, _, names in os.walk(self._store / below):
                for name in names:
                    try:
                        state = os.stat(f"{directory}/{name}")
                    except FileNotFoundError:
                        continue
                    found[state.st_ino] = state.st_size
        return found


def pull(mirror: Mirror, tag: str) -> int | None:
    """Pull an image; its bytes, all of them right, or None if the mirror did not give its manifest."""
    answer = get_manifest(mirror.url, REPOSITORY, tag)
    if answer.status != 200:
        return None
    manifest: dict[str, Any] = json.loads(answer.body)
    total = 0
    for descriptor in (manifest["config"], *manifest["layers"]):
        found, size = hashlib.sha256(), 0
        with stream("GET", f"{mirror.url}/v2/{REPOSITORY}/blobs/{descriptor['digest']}") as response:
            assert response.status == 200, (tag, descriptor, response.read())
            while piece := response.read(MEGABYTE):
                found.update(piece)
                size += len(piece)
        assert size == descriptor["size"]
        assert f"sha256:{found.hexdigest()}" == descriptor["digest"]
        total += size
    return total


def test_three_times_the_cap(hub: Hub, mirror: Mirror, scale: Scale, record_property: Any) -> None:
    """Eight clients pull three times what the store may hold: never more than that on disk, every pull right; with upstream
    down, what is served is whole."""
    cap = scale.cap * MEGABYTE
    for number in range(IMAGES):
        shared = {"size": scale.sizes[0], "seed": 1_000_000 + number // 4}
        own = [{"size": size, "seed": 10 * number + i} for i, size in enumerate(scale.sizes[1:])]
        hub.add_image(REPOSITORY, f"{number}", [shared, *own])
    order = [*range(IMAGES), *random.Random(1).choices(range(IMAGES), k=IMAGES // 4)]
    with Gauge(mirror.store) as gauge, ThreadPoolExecutor(CLIENTS) as pool:
        pulled = list(pool.map(lambda number: pull(mirror, f"{number}"), order))
    assert None not in pulled
    assert sum(size for size in pulled if size) > 2.9 * cap
    figures = {name: mirror.metric(f'downloads_total{{result="{name}"}}') for name in ("committed", "bypassed", "failed")}
    figures |= {"highest": gauge.highest, "samples": gauge.samples, "pulled": sum(size or 0 for size in pulled)}
    figures["evicted"] = mirror.metric('evicted_bytes_total{reason="max_size"}')
    record_property("figures", figures)
    print(figures)
    assert gauge.samples > 20
    assert gauge.highest <= cap
    # The cap is not kept by storing nothing.
    assert gauge.highest > cap // 2
    assert figures["committed"] > 4 * figures["bypassed"]
    mirror.check_log()
    with hub.down():
        served = [size for number in range(IMAGES) if (size := pull(mirror, f"{number}")) is not None]
        assert len(served) >= 4
