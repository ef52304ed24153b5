"""Ranges of blobs that are held, and of blobs that are still arriving (RFC 9110 section 14)."""

import asyncio
import email

import pytest

from tests.mirror.transfers import Transfer
from tests.support.names import MIB

SIZE = 3 * MIB + 4321
ARRIVED = 2 * MIB
# More than the buffers of a connection hold: those of its sockets, and that of the mirror.
IN_FLIGHT = 4 * MIB


@pytest.fixture
def blob(hub, mirror):
    return Transfer(hub, mirror, SIZE)


@pytest.fixture(params=["arriving", "held"])
async def there(request, blob):
    """The blob, held; or arriving, with its first two megabytes there and upstream standing still."""
    if request.param == "held":
        await blob.get()
        await blob.held()
        yield blob
        return
    gate, client = await blob.started(ARRIVED)
    await client.has(ARRIVED)
    yield blob
    gate.release()
    assert await client.whole() == blob.data
    assert len(blob.fetched()) == 1


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        (f"bytes={MIB - 1}-{MIB}", MIB - 1, MIB + 1),
        (f"bytes=0-{ARRIVED - 1}", 0, ARRIVED),
        ("BYTES=5-9", 5, 10),
    ],
)
async def test_range_of_what_is_there(there, header, start, stop):
    """A range is answered with 206, its bytes and its place, also while the rest of the blob has not arrived."""
    answer = await there.get(Range=header)
    assert answer.status == 206
    assert answer.body == there.data[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
async def test_range_outside(there, header):
    """A range without a byte of the blob is refused with 416 and the blob's size."""
    answer = await there.get(Range=header)
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    assert answer.code() == "RANGE_INVALID"


async def test_several_ranges(there):
    """Several ranges come as multipart, each with its place."""
    answer = await there.get(Range="bytes=0-9,1000-1099,1000-1004")
    assert answer.status == 206
    assert answer.headers["Content-Length"] == str(len(answer.body))
    raw = b"Content-Type: " + answer.headers["Content-Type"].encode() + b"\r\n\r\n" + answer.body
    parts = email.message_from_bytes(raw).get_payload()
    places = [(0, 10), (1000, 1100), (1000, 1005)]
    assert [part["Content-Range"] for part in parts] == [f"bytes {a}-{b - 1}/{SIZE}" for a, b in places]
    for a, b in places:
        assert there.data[a:b] in answer.body


async def test_if_range(there):
    """If-Range with the blob's ETag lets the range apply."""
    answer = await there.get(Range="bytes=5-9", **{"If-Range": f'"{there.digest}"'})
    assert answer.status == 206
    assert answer.body == there.data[5:10]


@pytest.mark.parametrize("condition", ['"sha256:other"', 'W/"x"', "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_if_range_of_something_else(blob, condition):
    """If-Range with anything else gives the whole blob."""
    answer = await blob.get(Range="bytes=5-9", **{"If-Range": condition})
    assert answer.status == 200
    assert answer.body == blob.data


@pytest.mark.parametrize(("header", "start"), [("bytes=-1000", SIZE - 1000), (f"bytes={MIB}-", MIB), (f"bytes=-{SIZE + 1}", 0)])
@pytest.mark.parametrize("held", [True, False])
async def test_open_ended_and_suffix(blob, header, start, held):
    """A range to the end is complete, on a held blob and on a cold one, which is held afterwards."""
    if held:
        await blob.get()
        await blob.held()
    answer = await blob.get(Range=header)
    assert answer.status == 206
    assert answer.body == blob.data[start:]
    assert await blob.held()


async def test_far_range_does_not_wait_for_what_is_before_it(hub, mirror):
    """A client far ahead of the download gets its range by a request of its own; together they fetch each byte once."""
    blob = Transfer(hub, mirror, 12 * MIB)
    gate, client = await blob.started(MIB // 2)
    hub.clear_script()
    far = 10 * MIB
    answer = await blob.get(Range=f"bytes={far + 5}-{far + 1004}")
    assert answer.body == blob.data[far + 5 : far + 1005]
    assert not gate.event.is_set()
    assert blob.asked() == [None, f"bytes={far}-"]
    gate.release()
    assert await client.whole() == blob.data
    assert await blob.held()


async def test_parallel_open_ended_ranges(hub, mirror):
    """Clients that request to the end and hang up behind their part, as containerd does, and a late one that reads it all."""
    parts = 8
    blob = Transfer(hub, mirror, parts * 2 * MIB)
    hub.latency = 0.01

    async def part(number):
        start = number * 2 * MIB
        client = await blob.client(Range=f"bytes={start}-")
        await client.has(2 * MIB)
        await client.leave()
        return client.data[: 2 * MIB]

    pieces = await asyncio.gather(*map(part, range(parts)))
    assert b"".join(pieces) == blob.data
    assert (await blob.get()).body == blob.data
    assert await blob.held()
    # A connection that ends where another one has begun leaves in its buffers what upstream has sent beyond.
    fetched = blob.fetched()
    assert len(fetched) <= 4
    assert sum(seen.body_bytes_sent for seen in fetched) <= len(blob.data) + len(fetched) * IN_FLIGHT


async def test_ignored_conditions_of_ranges(there):
    """Units and forms that nobody understands are ignored: the whole blob would be sent, which HEAD shows."""
    answer = await there.mirror.head(there.path, headers={"Range": "lines=1-2"})
    assert answer.status == 200
    assert answer.headers["Content-Length"] == str(SIZE)
