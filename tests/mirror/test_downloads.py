"""One blob, many clients, one download: as clients see it."""

import asyncio

import pytest

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.urgency import Urgency
from tests.mirror.transfers import Transfer, raw, raw_head
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, MIB

SIZE = 3 * MIB + 4321


@pytest.fixture
def blob(hub, mirror):
    return Transfer(hub, mirror, SIZE)


async def test_fifty_clients_over_time_cost_one_download(hub, tmp_path):
    """All who come while a blob arrives get their first byte at once, the right body, and upstream sends it once."""
    # Upstream is held for as long as it takes fifty clients to come.
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"stall_timeout": "30s"}) as mirror:
        blob = Transfer(hub, mirror, SIZE)
        gate, first = await blob.started(MIB)
        others = [await blob.client() for _ in range(49)]
        assert not gate.event.is_set()
        assert first.cache == "MISS"
        assert {client.cache for client in others} == {"JOINED"}
        assert await mirror.metric("download_readers") == 50
        gate.release()
        for client in (first, *others):
            assert await client.whole() == blob.data
        (request,) = blob.fetched()
        assert request.body_bytes_sent == SIZE
        assert await blob.held()
        assert (await blob.get()).cache == "HIT"


async def test_clients_before_the_first_answer_share_it(blob, hub):
    """Clients that come at the same moment make one download between them."""
    gate = blob.gate(0)
    pulls = [asyncio.create_task(blob.get()) for _ in range(20)]
    await gate.reached.wait()
    gate.release()
    answers = await asyncio.gather(*pulls)
    assert all(answer.status == 200 and answer.body == blob.data for answer in answers)
    assert sorted(answer.cache for answer in answers) == ["JOINED"] * 19 + ["MISS"]
    assert hub.count(host="cdn") == 1


async def test_late_joiner_gets_what_is_there(blob):
    """A client that comes near the end has everything that has arrived before upstream sends another byte."""
    gate, first = await blob.started(SIZE - 70_000)
    late = await blob.client()
    await late.has(SIZE - 70_000)
    assert len(late.data) == SIZE - 70_000
    gate.release()
    assert await late.whole() == await first.whole() == blob.data


async def test_client_that_reads_nothing_holds_up_nobody(hub, mirror):
    """A client that takes no byte of a blob larger than all buffers delays neither the download nor the others."""
    blob = Transfer(hub, mirror, 12 * MIB)
    async with raw(mirror, blob.path) as reader:
        await raw_head(reader)
        reader._transport.pause_reading()
        assert (await blob.get()).body == blob.data
        assert await blob.held()
    assert len(blob.fetched()) == 1


async def test_first_client_leaves(blob):
    """The client that started the download goes, and the others notice nothing."""
    gate, first = await blob.started(SIZE // 10)
    second = await blob.client()
    await first.leave()
    gate.release()
    assert await second.whole() == blob.data
    assert len(blob.fetched()) == 1


async def test_all_clients_leave(blob, mirror):
    """A download that nobody waits for any more is completed for the next pull."""
    gate, first = await blob.started(SIZE // 10)
    await first.leave()
    gate.release()
    assert await blob.held()
    assert (await blob.get()).cache == "HIT"
    assert len(blob.fetched()) == 1


async def test_head_while_arriving(blob):
    """HEAD tells the whole size of a blob that is still arriving, without another download."""
    gate, first = await blob.started(MIB)
    head = await blob.mirror.head(blob.path)
    assert head.status == 200
    assert head.headers["Content-Length"] == str(SIZE)
    assert head.headers["Docker-Content-Digest"] == blob.digest
    assert head.body == b""
    gate.release()
    await first.whole()
    assert len(blob.fetched()) == 1


async def test_head_of_a_cold_blob_fetches_nothing(blob):
    """HEAD of a blob that is not around tells its size and does not download it."""
    head = await blob.mirror.head(blob.path)
    assert head.headers["Content-Length"] == str(SIZE)
    assert blob.fetched() == []
    assert blob.mirror.partials() == []


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MIB - 1, MIB, MIB + 1])
async def test_every_size(hub, mirror, size):
    """A cold blob of any size arrives whole, and again from disk."""
    blob = Transfer(hub, mirror, size)
    for outcome in ("MISS", "HIT"):
        answer = await blob.get()
        assert (answer.status, answer.cache) == (200, outcome)
        assert answer.body == blob.data
        assert answer.headers["Content-Length"] == str(size)
        assert await blob.held()
    assert mirror.partials() == []


async def test_missing_blob_leaves_nothing(hub, mirror):
    """A blob that upstream does not have is a 404 in the API's words, and leaves no file in the store."""
    hub.add_image("library/app", "1")
    answer = await mirror.get(f"/v2/library/app/blobs/sha256:{'0' * 64}")
    assert answer.status == 404
    assert answer.code() == "BLOB_UNKNOWN"
    await mirror.idle()
    assert mirror.partials() == []


async def test_blob_that_is_committed_while_a_node_asks_for_it(hub, mirror, monkeypatch):
    """Another process commits it between the look for the blob and the look for its download: it is found all the same."""
    blob = Transfer(hub, mirror, 100_000)
    await blob.get()
    assert await blob.held()
    files, looks = mirror.services.store.files, []
    really = files.open

    def open_late(digest):
        looks.append(digest)
        return None if len(looks) == 1 else really(digest)

    monkeypatch.setattr(files, "open", open_late)
    body = mirror.graph.cache.blobs.open_for_node(Repository.parse("docker.io", APP), Digest.parse(blob.digest), Urgency.CLIENT)
    assert body is not None
    assert await body.sized() == 100_000
    await body.close()
