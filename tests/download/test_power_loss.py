"""After a power loss a map may vouch for bytes that never reached the disk: nothing of them is handed out unseen."""

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from tests.download.source import ScriptedSource
from tests.download.world import changed, ingest_of, open_partial
from tests.support.names import content

DATA = content(4 * CHUNK + 12_345)
DIGEST = Digest.of(DATA)
BREAK = 3 * CHUNK + 777


@pytest.fixture(params=[64 << 10, 2 * CHUNK + 5], ids=["small steps", "large steps"])
def source(request):
    return ScriptedSource(DATA, request.param)


async def interrupted(world, source):
    """Stop a download in the middle, after everything that has arrived was hashed, and start the machine anew."""
    gate, worker = source.gate(BREAK), world.worker()
    reader = world.pull(worker, source)
    await gate.reached.wait()
    assert worker.find(DIGEST).received == BREAK
    await worker.close()
    await reader.ended_short()
    gate.release()


@pytest.fixture
def reboot(monkeypatch):
    """Starts the machine anew, as far as maps can tell."""
    return lambda: monkeypatch.setattr("mirror.download.chunk_map.boot_id", lambda: b"another boot....")


def lose(world, start, count):
    """Have bytes of the partial file be zeros."""
    with open(world.layout.partial(DIGEST), "r+b") as file:
        file.seek(start)
        file.write(bytes(count))


async def test_no_zero_is_handed_out(world, source, reboot):
    """The reader of a partial that a power loss has damaged gets right bytes only, and what was whole is not fetched again."""
    await interrupted(world, source)
    lose(world, 2 * CHUNK + 100, 5000)
    reboot()
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens == [(0, None), (2 * CHUNK, None)]
    assert await world.ended() == ["committed"]


async def test_nothing_lost(world, source, reboot):
    """A machine that was started anew in order costs no more than the chunk that had begun."""
    await interrupted(world, source)
    reboot()
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens == [(0, None), (3 * CHUNK, None)]


async def test_everything_lost(world, source, reboot):
    """If nothing is left the blob is fetched from its beginning."""
    await interrupted(world, source)
    lose(world, 0, len(DATA))
    reboot()
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens == [(0, None), (0, None)]


async def test_lost_after_all_had_arrived(world, source, reboot, monkeypatch):
    """Nor is a zero handed out of a blob that lacked only its commit."""
    with monkeypatch.context() as patched:
        patched.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
        await world.pull(world.worker(), source).whole()
        await world.quiet()
    lose(world, 4 * CHUNK, 12_345)
    reboot()
    assert await world.pull(world.worker(), source).whole() == DATA
    await world.quiet()
    assert source.opens == [(0, None), (4 * CHUNK, None)]
    assert world.holds(DATA)


async def test_follower_waits_for_the_hash(world, source, reboot):
    """What another worker is just hashing again is not handed out by a follower before it is believed."""
    await interrupted(world, source)
    reboot()
    other = open_partial(world.layout, DIGEST)
    assert other.try_acquire_driver()
    reader = world.pull(world.worker(), source)
    for _ in range(5):
        other.map.write_hashed(CHUNK)
        await changed(ingest_of(reader), 0.05)
    assert not reader.data
    assert ingest_of(reader).size is None
    other.close()
    assert await reader.whole() == DATA
