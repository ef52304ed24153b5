"""Damaged chunks of a blob are found before a byte of them is handed out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.cluster import checksums as module
from mirror.cluster.checksums import CheckedStream, DamagedChunk, checksums_of
from mirror.core.pieces import CHUNK

DATA = bytes(range(256)) * (CHUNK // 256) * 2 + b"the end"


class Stream:
    """A part of a blob, in blocks of one size."""

    size, is_partial = len(DATA), True

    def __init__(self, data, start, stop, step):
        self.start = start
        self._data, self._stop, self._step = data, stop, step

    async def blocks(self):
        for position in range(self.start, self._stop, self._step):
            yield memoryview(self._data)[position : min(position + self._step, self._stop)]


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    path = tmp_path_factory.mktemp("blob") / "blob"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        return checksums_of(file, len(DATA))


async def received(stream):
    """What comes, and whether a damaged chunk ended it."""
    found = bytearray()
    try:
        async for block in stream.blocks():
            found += block
    except DamagedChunk:
        return bytes(found), True
    return bytes(found), False


@pytest.mark.parametrize("step", [1000, CHUNK, 3 * CHUNK])
@pytest.mark.parametrize("start", [0, 5, CHUNK, CHUNK + 7, 2 * CHUNK + 1])
async def test_right_bytes_pass(start, step, sums):
    """Whatever the blocks and the range; a chunk is requested from its begin."""
    stream = Stream(DATA, start - start % CHUNK, len(DATA), step)
    assert await received(CheckedStream(stream, start, sums)) == (DATA[start:], False)


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK, len(DATA) - 1])
async def test_nothing_of_a_damaged_chunk_is_handed_out(at, sums):
    damaged = bytearray(DATA)
    damaged[at] ^= 1
    stream = Stream(damaged, 0, len(DATA), 300_000)
    assert await received(CheckedStream(stream, 0, sums)) == (DATA[: at - at % CHUNK], True)


async def test_end_within_a_chunk_is_unchecked(sums):
    """A lazy reader may stop there; the digest decides."""
    assert await received(CheckedStream(Stream(DATA, 0, CHUNK + 9, 1000), 0, sums)) == (DATA[: CHUNK + 9], False)


async def test_checksums_of_a_shorter_blob_are_none_of_it(sums):
    """Of another version of the key, say."""
    assert await received(CheckedStream(Stream(DATA, 0, len(DATA), CHUNK), 0, sums[:4])) == (DATA, False)


@given(st.integers(0, 3 * 4096 + 1))
def test_checksums_depend_on_chunks_alone(tmp_path_factory, size):
    """Not on how the file is read."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    path.write_bytes(DATA[:size])
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(module, "CHUNK", 4096)
        one = checksums_of(file, size)
        patch.setattr(module, "_READ_BYTES", 1000)
        assert checksums_of(file, size) == one
        assert len(one) == 4 * -(-size // 4096)
