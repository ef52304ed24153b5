"""Another program fills the disk: the store gives way where that helps, and is not thrown away where it does not."""

import contextlib
import os
import subprocess

import pytest

from mirror.core.digest import Digest
from tests.mirror.images import age, contents, pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB
from tests.support.waiting import LIMIT

BLOB = f"/v2/{APP}/blobs"
SIZE = 16 * MIB
MIN_FREE = 6 * MIB


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MiB; only root can have one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path]
    if os.geteuid() or subprocess.run(mounting, check=False, capture_output=True, timeout=LIMIT).returncode:
        pytest.skip("needs the right to mount")
    yield path
    # Lazily: connections of threads to the index live until they are collected.
    subprocess.run(["umount", "--lazy", path], check=True, timeout=LIMIT)


@pytest.fixture
async def mirror(hub, disk):
    """A mirror that is to leave 6 MiB of that disk free, with tags that are pinned."""
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "tags": [{"match": "library/app:pinned", "pin": True}]}
    storage = {"max_size": "0", "min_free": str(MIN_FREE), "scrub_interval": "0"}
    async with contextlib.AsyncExitStack() as stack:
        settings = {"storage": storage, "registries": {"docker.io": registry}}
        yield await stack.enter_async_context(MirrorUnderTest(hub, disk / "store", **settings))


@pytest.fixture
async def images(hub, mirror):
    """A pinned image, used least recently, and two others, older and newer; each has a layer of 1 MiB."""
    made = {name: hub.add_image(APP, name, layers=[os.urandom(MIB)]) for name in ("pinned", "older", "newer")}
    for name, image in made.items():
        await pull(mirror, image, name)
    await mirror.idle()
    mirror.usage.write(mirror.store.files, mirror.store.index)
    for when, image in enumerate(made.values(), 1000):
        age(mirror, image, when)
    return made


def leave(mirror, disk, size):
    """Another program takes what is free on the disk but for `size` bytes."""
    foreign = disk / "foreign"
    foreign.unlink(missing_ok=True)
    foreign.write_bytes(bytes(mirror.store.quota.free() - size))


def held(mirror, images):
    return [name for name, image in images.items() if all(mirror.holds(digest) for digest in contents(image))]


def events(log, name):
    return [event for event in log if event["event"] == name]


async def test_what_cannot_help_stays(hub, mirror, disk, images, log):
    """If all of the store could not bring the free space back nothing goes, not even for a request; it is said once."""
    leave(mirror, disk, MIB)
    for _ in range(3):
        assert mirror.services.janitor.evict() is False
    blob = hub.add_synthetic_blob(APP, 100 * KIB, seed=1)
    answer = await mirror.get(f"{BLOB}/{blob.digest}")
    assert (answer.cache, answer.sha256) == ("BYPASS", blob.digest)
    assert held(mirror, images) == ["pinned", "older", "newer"]
    (warning,) = events(log, "bound_unreachable")
    assert (warning["log_level"], warning["bound"], warning["min_free"]) == ("warning", "min_free", MIN_FREE)
    assert await mirror.metric("storage_min_free_ok") == 0

    (disk / "foreign").unlink()
    assert mirror.services.janitor.evict() is False
    assert await mirror.metric("storage_min_free_ok") == 1
    assert len(events(log, "bound_reachable")) == 1
    assert (await mirror.get(f"{BLOB}/{blob.digest}")).cache == "MISS"


async def test_what_helps_goes(mirror, disk, images):
    """If some of the store brings the free space back, so much goes, the least recently used first, and no pin."""
    leave(mirror, disk, MIN_FREE - 200 * KIB)
    while mirror.services.janitor.evict():
        pass
    assert held(mirror, images) == ["pinned", "newer"]
    assert mirror.store.quota.free() >= MIN_FREE
    assert await mirror.metric("storage_min_free_ok") == 1
    assert await mirror.metric("evicted_blobs_total", reason="min_free") > 0


async def test_the_limit_itself_will_do(mirror, disk, images):
    """If the mark below the limit is out of reach, the limit itself is kept."""
    leave(mirror, disk, MIN_FREE - 1900 * KIB)
    while mirror.services.janitor.evict():
        pass
    assert held(mirror, images) == ["pinned"]
    assert mirror.store.quota.free() >= MIN_FREE


async def test_no_pin_for_others(mirror, disk, images, log):
    """What is pinned does not go for the free space: if it would take that, nothing goes."""
    leave(mirror, disk, MIN_FREE - 2500 * KIB)
    assert mirror.services.janitor.evict() is False
    assert held(mirror, images) == ["pinned", "older", "newer"]
    assert events(log, "pinned_evicted") == []


async def test_grown_store_is_looked_at_again(mirror, disk, images):
    """What was out of reach is tried again as soon as there is more that could go."""
    leave(mirror, disk, MIN_FREE - 2500 * KIB)
    assert mirror.services.janitor.evict() is False
    # Others brought it here, and the disk has got room for it meanwhile.
    os.truncate(disk / "foreign", (disk / "foreign").stat().st_size - MIB)
    mirror.store.quota.min_free = 0
    data = os.urandom(MIB)
    mirror.store.files.put(Digest.of(data), data)
    mirror.store.quota.min_free = MIN_FREE
    while mirror.services.janitor.evict():
        pass
    assert mirror.store.quota.free() >= MIN_FREE
    assert "pinned" in held(mirror, images)


async def test_limit_below_what_cannot_go(mirror, images, log):
    """A limit that not even an empty store would keep, for its index alone is larger, is no reason to empty it."""
    mirror.store.quota.min_free, mirror.store.quota.max_size = 0, 4 * KIB
    for _ in range(2):
        assert mirror.services.janitor.evict() is False
    assert held(mirror, images) == ["pinned", "older", "newer"]
    assert [event["bound"] for event in events(log, "bound_unreachable")] == ["max_size"]
