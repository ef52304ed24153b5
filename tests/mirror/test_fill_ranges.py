"""`fill: ranges`: of a blob that clients read lazily only what they read is fetched, and each chunk of it once."""

import asyncio

import pytest

from tests.fakehub import Corrupt, Rule, Status
from tests.fakehub.faults import Fault
from tests.mirror.transfers import Transfer
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import KIB, MIB, content, manifest_path
from tests.support.waiting import eventually

SIZE = 12 * MIB + 4321


def lazy(hub, path, **settings):
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "fill": "ranges"}
    return MirrorUnderTest(hub, path, registries={"docker.io": registry}, **settings)


@pytest.fixture
async def mirror(hub, tmp_path):
    async with lazy(hub, tmp_path / "store") as mirror:
        yield mirror


@pytest.fixture
def blob(hub, mirror):
    return Transfer(hub, mirror, SIZE)


async def sent(blob):
    """Bytes of the blob that upstream has sent, when it sends no more."""
    await eventually(lambda: not blob.mirror.services.connections.leases, "the end of all transfers")
    return sum(seen.body_bytes_sent for seen in blob.fetched())


def ranged(first, last):
    """A Range header for these chunks, the last one included."""
    return f"bytes={first * MIB}-{(last + 1) * MIB - 1}"


async def test_only_the_chunks_that_are_read(blob):
    """A range in the middle of a cold blob is one request for its chunks, and nothing follows."""
    answer = await blob.get(Range=f"bytes={5 * MIB + 10}-{6 * MIB + 9}")
    assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {5 * MIB + 10}-{6 * MIB + 9}/{SIZE}")
    assert answer.body == blob.data[5 * MIB + 10 : 6 * MIB + 10]
    assert blob.asked() == [ranged(5, 6)]
    assert await sent(blob) == 2 * MIB
    assert not blob.mirror.holds(blob.digest)


async def test_first_range_of_a_known_layer(hub, mirror):
    """A manifest states the size, and the response to the range is the grant: no HEAD comes before it."""
    layer = content(3 * MIB)
    image = hub.add_image("library/app", "1", layers=[layer])
    await mirror.get(manifest_path("1"))
    hub.reset_counters()
    path = f"/v2/library/app/blobs/{image.layers[0].digest}"
    for start in (MIB, 2 * MIB):
        answer = await mirror.get(path, headers={"Range": f"bytes={start}-{start + 9}"})
        assert (answer.status, answer.body) == (206, layer[start : start + 10])
    trips = [(seen.method, seen.host) for seen in hub.requests]
    assert trips == [("GET", "registry"), ("GET", "cdn"), ("GET", "cdn")]


async def test_range_of_a_known_layer_that_is_refused(hub, mirror):
    """Upstream refuses the range, and is not asked again for a while."""
    image = hub.add_image("library/app", "1", layers=[content(3 * MIB)])
    await mirror.get(manifest_path("1"))
    hub.script(Rule(kind="blob", times=None), Status(404))
    hub.reset_counters()
    for _ in range(2):
        answer = await mirror.get(f"/v2/library/app/blobs/{image.layers[0].digest}", headers={"Range": "bytes=0-9"})
        assert answer.status == 404
    assert hub.count(kind="blob") == 1


class Held(Fault):
    """The answer does not begin before `event` is set."""

    def __init__(self):
        self.reached, self.event = asyncio.Event(), asyncio.Event()

    async def before(self):
        self.reached.set()
        await self.event.wait()


async def test_known_layer_before_its_grant(hub, mirror):
    """While the first range is on its way, a HEAD learns from upstream whether the layer is granted, not from the manifest."""
    image = hub.add_image("library/app", "1", layers=[content(3 * MIB)])
    await mirror.get(manifest_path("1"))
    path, held = f"/v2/library/app/blobs/{image.layers[0].digest}", Held()
    hub.script(Rule(kind="blob", method="GET"), held)
    hub.script(Rule(kind="blob", method="HEAD"), Status(404))
    client = asyncio.create_task(mirror.get(path, headers={"Range": "bytes=0-9"}))
    await held.reached.wait()
    assert (await mirror.head(path)).status == 404
    held.event.set()
    assert (await client).status == 206


async def test_a_chunk_is_fetched_once(blob):
    """However many clients read it, at once or one after the other."""
    ranges = [(3 * MIB + i * 100 * KIB, 3 * MIB + i * 100 * KIB + 64 * KIB) for i in range(8)]
    answers = await asyncio.gather(*(blob.get(Range=f"bytes={start}-{stop - 1}") for start, stop in ranges))
    assert [answer.body for answer in answers] == [blob.data[start:stop] for start, stop in ranges]
    assert (await blob.get(Range=f"bytes={3 * MIB}-{4 * MIB - 1}")).body == blob.data[3 * MIB : 4 * MIB]
    assert blob.asked() == [ranged(3, 3)]


async def test_several_ranges(blob):
    """A request for several ranges fetches the chunks of each of them."""
    answer = await blob.get(Range=f"bytes=0-99,{7 * MIB}-{7 * MIB + 99},-100")
    assert answer.status == 206
    for start, stop in ((0, 100), (7 * MIB, 7 * MIB + 100), (SIZE - 100, SIZE)):
        assert blob.data[start:stop] in answer.body
    assert blob.asked() == [ranged(0, 0), ranged(7, 7), f"bytes={12 * MIB}-"]


async def test_footer(blob):
    """The end of a blob, as lazy pullers read it first, without a byte before its chunk."""
    assert (await blob.get(Range="bytes=-50")).body == blob.data[-50:]
    assert await sent(blob) == SIZE - 12 * MIB


async def test_hanging_up(hub, mirror):
    """An open-ended range costs what its client has read of it and what its connection has buffered, but not the blob."""
    blob = Transfer(hub, mirror, 40 * MIB)
    client = await blob.client(Range=f"bytes={2 * MIB}-")
    await client.has(100 * KIB)
    await client.leave()
    await eventually(lambda: blob.mirror.downloads.readers == 0)
    assert await sent(blob) <= 16 * MIB


async def test_open_ended_to_the_end(blob):
    """Who does not hang up gets everything, in few requests."""
    assert (await blob.get(Range=f"bytes={MIB}-")).body == blob.data[MIB:]
    assert await sent(blob) == SIZE - MIB
    assert len(blob.fetched()) <= 5


async def test_all_of_it_after_a_part(blob):
    """A client that reads the whole blob has the rest fetched, and the digest checked."""
    await blob.get(Range=f"bytes={4 * MIB}-{5 * MIB - 1}")
    assert (await blob.get()).body == blob.data
    assert await blob.held()
    assert await sent(blob) == SIZE
    assert (await blob.get(Range="bytes=0-9")).cache == "HIT"


async def test_part_after_part(blob):
    """When clients have read every chunk the blob is verified, and held."""
    for start in range(0, SIZE, 4 * MIB):
        assert (await blob.get(Range=f"bytes={start}-{start + 4 * MIB - 1}")).status == 206
    assert await blob.held()
    assert await sent(blob) == SIZE


async def test_wrong_bytes_are_not_kept(hub, mirror):
    """A range is passed on as upstream sends it; what does not have the digest is never held."""
    blob = Transfer(hub, mirror, 2 * MIB)
    hub.script(Rule(host="cdn", method="GET", times=None), Corrupt(at=10))
    for start in (0, MIB):
        assert (await blob.get(Range=f"bytes={start}-{start + MIB - 1}")).status == 206
    assert not await blob.held()


async def test_restart(hub, tmp_path):
    """What was read before is not fetched again."""
    async with lazy(hub, tmp_path / "store") as mirror:
        blob = Transfer(hub, mirror, SIZE)
        await blob.get(Range=f"bytes={4 * MIB}-{5 * MIB - 1}")
    async with lazy(hub, tmp_path / "store") as mirror:
        blob.mirror = mirror
        for start in (4 * MIB, 6 * MIB):
            assert (await blob.get(Range=f"bytes={start}-{start + MIB - 1}")).body == blob.data[start : start + MIB]
    assert blob.asked() == [ranged(4, 4), ranged(6, 6)]


async def test_nothing_is_left_running(blob, monkeypatch):
    """A while after the last reader has left nothing is under way any more."""
    monkeypatch.setattr("mirror.download.ingest._IDLE_S", 0.05)
    await blob.get(Range="bytes=0-9")
    await blob.mirror.idle()
    assert not blob.mirror.holds(blob.digest)
    assert (await blob.get(Range="bytes=10-19")).body == blob.data[10:20]
    assert blob.asked() == [ranged(0, 0)]


@pytest.mark.parametrize(("status", "expected"), [(404, 404), (500, 503)])
async def test_upstream_fails(hub, blob, status, expected):
    """The client is told soon, and not left waiting for a download that nobody makes."""
    hub.script(Rule(kind="blob", method="GET", times=None), Status(status))
    async with asyncio.timeout(15):
        assert (await blob.get(Range=f"bytes={MIB}-{MIB + 9}")).status == expected


async def test_no_prefetch(hub, tmp_path):
    """Layers of an image are not fetched ahead: their client may want a part of them only."""
    image = hub.add_image("library/app", "1", layers=[b"layer" * 1000])
    async with lazy(hub, tmp_path / "store", downloads={"prefetch": True}) as mirror:
        assert (await mirror.get(manifest_path("1"))).sha256 == image.digest
        await mirror.idle()
    assert hub.count("GET", host="cdn") == 0
