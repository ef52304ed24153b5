"""A held blob that has gone bad: whoever fetches it twice in a row gets it mended, and nobody waits or pays for that."""

import asyncio
import threading

import aiohttp
import pytest

from mirror.core.digest import Digest
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB
from tests.support.waiting import LIMIT, SOON, eventually

BLOB = f"/v2/{APP}/blobs"
SIZE = 300 * KIB
HOUR = 3600.0


class Now:
    """The clock of what workers know of clients."""

    def __init__(self, mirror):
        self.now = 1000.0
        mirror.services.group.repeats.clock = lambda: self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def now(mirror):
    return Now(mirror)


@pytest.fixture
async def blob(hub, mirror, now):
    """A blob that is held."""
    added = hub.add_synthetic_blob(APP, SIZE)
    assert (await mirror.get(f"{BLOB}/{added.digest}")).cache == "MISS"
    await mirror.idle()
    return added


def rot(mirror, digest):
    """A bit is not what it was."""
    with mirror.blob_path(digest).open("r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)
        file.seek(SIZE // 2)
        file.write(bytes([byte[0] ^ 1]))


async def fetch(mirror, digest, **kwargs):
    answer = await mirror.get(f"{BLOB}/{digest}", **kwargs)
    assert (answer.status, answer.cache) in ((200, "HIT"), (206, "HIT"))
    return answer


async def checked(mirror, result="ok"):
    return await mirror.metric("scrubbed_blobs_total", result=result)


async def none_is_checked(mirror):
    """Nothing waits to be checked, and nothing has been."""
    assert not mirror.services.recheck.waiting
    assert await checked(mirror) == await checked(mirror, "wrong") == 0


async def test_repeated_fetch_mends(mirror, blob):
    """The second fetch of a rotten blob has it hashed and dropped, and the third gets the right bytes."""
    rot(mirror, blob.digest)
    for _ in range(2):
        assert (await fetch(mirror, blob.digest)).sha256 != blob.digest
    await eventually(lambda: not mirror.holds(blob.digest), "the blob is dropped")
    answer = await mirror.get(f"{BLOB}/{blob.digest}")
    assert (answer.cache, answer.sha256) == ("MISS", blob.digest)
    assert await checked(mirror, "wrong") == 1


async def test_at_most_once_an_hour(mirror, blob, now):
    """However often an intact blob is fetched, it is hashed once an hour."""
    for _ in range(20):
        await fetch(mirror, blob.digest)
    await eventually(lambda: checked(mirror), "the check")
    now.advance(HOUR - 1)
    for _ in range(5):
        await fetch(mirror, blob.digest)
    assert not mirror.services.recheck.waiting
    assert await checked(mirror) == 1
    now.advance(2)
    await fetch(mirror, blob.digest)
    await eventually(lambda: checked(mirror), "the next check", holds=lambda count: count == 2)


async def test_others_and_later_are_no_repeat(mirror, blob, now):
    """Another client, the same one after minutes, and ranges are nothing to look into."""
    await fetch(mirror, blob.digest)
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    url = mirror.url(f"{BLOB}/{blob.digest}")
    async with aiohttp.ClientSession(connector=connector) as other, other.get(url) as response:
        assert len(await response.read()) == SIZE
    await none_is_checked(mirror)
    now.advance(61)
    await fetch(mirror, blob.digest)
    for _ in range(2):
        await fetch(mirror, blob.digest, headers={"Range": "bytes=0-"})
    await none_is_checked(mirror)


async def test_what_was_just_fetched_is_not_doubted(hub, mirror, now):
    """A blob whose digest has matched on its way in is not hashed for the client that waited for it and asks again."""
    added = hub.add_synthetic_blob(APP, SIZE, seed=7)
    await mirror.get(f"{BLOB}/{added.digest}")
    await mirror.idle()
    await fetch(mirror, added.digest)
    await none_is_checked(mirror)


async def test_nobody_waits_for_a_check(mirror, blob, monkeypatch):
    """While blobs are being hashed, which takes as long as it takes, they are served at once, to their last byte."""
    begun, go_on = threading.Event(), threading.Event()
    hasher = Digest.hasher

    def slow(digest):
        begun.set()
        go_on.wait(LIMIT)
        return hasher(digest)

    monkeypatch.setattr(Digest, "hasher", slow)
    try:
        await fetch(mirror, blob.digest)
        await fetch(mirror, blob.digest)
        assert await asyncio.to_thread(begun.wait, LIMIT)
        async with asyncio.timeout(SOON):
            for _ in range(10):
                assert (await fetch(mirror, blob.digest)).sha256 == blob.digest
        assert await checked(mirror) == 0
    finally:
        go_on.set()
    await eventually(lambda: checked(mirror), "the check")


async def test_stop_in_the_middle_of_a_check(hub, tmp_path, monkeypatch):
    """A mirror that stops does not wait for the end of a large blob."""
    monkeypatch.setattr("mirror.maintenance.recheck._RATE_BYTES_PER_S", MIB)
    added = hub.add_synthetic_blob(APP, 20 * MIB)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        await mirror.get(f"{BLOB}/{added.digest}")
        await mirror.idle()
        for _ in range(2):
            await fetch(mirror, added.digest)
        await eventually(lambda: not mirror.services.recheck.waiting, "the check begins")
        scrubbed = mirror.services.metrics.scrubbed_blobs
    assert [scrubbed.labels(result)._value.get() for result in ("ok", "wrong")] == [0, 0]
    assert mirror.holds(added.digest)
