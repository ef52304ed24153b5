"""The partial file and its chunk map: what it says has arrived has arrived, after any order of writes and any restart."""

import os
import struct
import tempfile
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.download import chunk_map
from mirror.download import partial as module
from mirror.download.partial import CHUNK
from mirror.storage.layout import Layout
from tests.download.world import open_partial, reopened

DIGEST = Digest.of(b"a blob")
SMALL = 16
HEADER = 32


class Model:
    """Which bytes have arrived, one by one."""

    def __init__(self, size):
        self.size = size
        self.arrived = bytearray(size)

    def first(self, position, value):
        """The first byte from `position` on that has or has not arrived, or the size."""
        found = self.arrived.find(value, position)
        return self.size if found < 0 else found

    def available(self, position):
        return min(self.first(position, 0), (position // SMALL + 64) * SMALL)

    def hole(self, start):
        first = self.first(start // SMALL * SMALL, 0)
        return None if first == self.size else (first, self.first(first, 1))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 70 * SMALL), writes=st.lists(st.tuples(st.integers(0, 200), st.integers(1, SMALL)), max_size=90))
def test_any_order_of_writes(size, writes):
    """However the chunks grow, `available`, `hole` and `received` tell exactly what has arrived, also after a restart."""
    with (
        tempfile.TemporaryDirectory() as root,
        mock.patch.multiple(chunk_map, CHUNK=SMALL),
        mock.patch.object(module, "CHUNK", SMALL),
    ):
        layout = Layout(root)
        layout.prepare()
        partial = open_partial(layout, DIGEST)
        partial.begin(size)
        model = Model(size)
        content = os.urandom(size)
        for index, count in writes:
            start = index * SMALL
            position = min(model.first(start, 0), start + SMALL) if start < size else size
            stop = min(position + count, start + SMALL, size)
            if position < stop:
                partial.write(position, content[position:stop])
                model.arrived[position:stop] = b"\1" * (stop - position)
        partial.close()
        again = open_partial(layout, DIGEST)
        assert again.refresh()
        for seen in (partial, again):
            assert seen.map.size == size
            assert seen.map.received() == sum(model.arrived)
            assert seen.map.is_complete() == all(model.arrived)
            for position in range(size):
                assert seen.map.available(position) == model.available(position)
                assert seen.map.hole(position) == model.hole(position)
        with again.reader() as file:
            on_disk = file.read()
        assert all(on_disk[i] == content[i] for i in range(size) if model.arrived[i])
        again.close()


def test_nothing_is_known_before_it_has_begun(layout):
    """Without a size there is nothing to read, no hole, and it is not complete."""
    valid, partial = reopened(layout, DIGEST)
    assert not valid
    assert partial.map.size is None
    assert partial.map.available(5) == 5
    assert partial.map.hole(0) is None
    assert partial.map.received() == 0
    assert not partial.map.is_complete()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_complete_at_every_size(layout, size):
    """A blob of any size is complete with its last byte and not before."""
    partial = open_partial(layout, DIGEST)
    partial.begin(size)
    for start in range(0, size, CHUNK):
        assert not partial.map.is_complete()
        partial.write(start, bytes(min(CHUNK, size - start)))
    assert partial.map.is_complete()
    assert partial.map.hole(0) is None
    partial.close()
    valid, again = reopened(layout, DIGEST)
    assert valid
    assert again.map.is_complete()


def test_map_of_another_file_is_not_believed(layout, begun):
    """A map that was left behind by a file of the same name says nothing about the new one."""
    os.unlink(begun.path)
    # Held open, so that the new file cannot get the same inode.
    valid, partial = reopened(layout, DIGEST)
    assert not valid
    assert partial.map.size is None
    assert partial.map.received() == 0


def test_truncated_map_is_not_believed(layout, begun):
    """A map that lacks even its last byte is none, wherever it ends."""
    path = layout.chunk_map(DIGEST)
    whole = os.stat(path).st_size
    assert reopened(layout, DIGEST)[0]
    for length in range(whole - 1, -1, -1):
        os.truncate(path, length)
        valid, partial = reopened(layout, DIGEST)
        assert not valid
        assert partial.map.received() == 0


def rewrite(layout, offset, data):
    with open(layout.chunk_map(DIGEST), "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"NOTAMAP1"),
        (8, struct.pack("=Q", CHUNK * 2)),
        (16, struct.pack("=Q", 3 * CHUNK + 1)),
        (16, struct.pack("=Q", 1)),
        (16, struct.pack("=Q", 1 << 45)),
        (16, struct.pack("=Q", (1 << 64) - 1)),
        (24, struct.pack("=Q", 1)),
        (HEADER, struct.pack("=I", CHUNK + 1)),
        (HEADER + 8, struct.pack("=I", CHUNK // 2 + 1)),
        (HEADER, b"\xff" * 12),
    ],
)
def test_contradictory_map_is_not_believed(layout, begun, offset, data):
    """Wrong magic, chunk size, size or inode, and marks beyond a chunk's length, make it no map: nothing has arrived."""
    rewrite(layout, offset, data)
    valid, partial = reopened(layout, DIGEST)
    assert not valid
    assert partial.map.received() == 0


@settings(max_examples=100, deadline=None)
@given(garbage=st.binary(max_size=60))
def test_garbage_map_is_not_believed(garbage):
    """Bytes from anywhere are not a map."""
    with tempfile.TemporaryDirectory() as root:
        layout = Layout(root)
        layout.prepare()
        with open(layout.chunk_map(DIGEST), "wb") as file:
            file.write(garbage)
        assert not reopened(layout, DIGEST)[0]


def test_map_of_a_file_that_was_cut_is_not_believed(layout, begun):
    """A map that vouches for bytes behind the end of the file lies."""
    os.truncate(begun.path, CHUNK)
    assert not reopened(layout, DIGEST)[0]


def test_begin_forgets_what_was_there(layout, begun):
    """Starting over leaves nothing of the earlier bytes and marks."""
    begun.begin(CHUNK + 5)
    assert begun.map.received() == 0
    with begun.reader() as file:
        assert file.read() == bytes(CHUNK + 5)
    assert reopened(layout, DIGEST)[1].map.size == CHUNK + 5


def test_bytes_are_written_before_their_mark(begun, monkeypatch):
    """The map never vouches for bytes that are not in the file yet."""
    order = []
    write = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: (order.append(os.readlink(f"/proc/self/fd/{fd}")), write(fd, data, at))[1]
    )
    begun.write(100, b"y" * 50)
    assert order == [begun.path, begun.path + ".map"]


def test_current_until_renamed_or_discarded(layout, begun):
    """The name leads to this file until it is committed or thrown away, also when another one takes the name."""
    assert begun.is_current()
    os.rename(begun.path, layout.root + "/elsewhere")
    assert not begun.is_current()
    other = open_partial(layout, DIGEST)
    assert other.is_current()
    assert not begun.is_current()
    other.close()


def test_opening_in_the_moment_of_a_commit_leaves_no_map(layout, begun, monkeypatch):
    """If the driver commits between the opening of the bytes and that of their map, no map stays behind."""
    real = module.ChunkMap

    def committed_before(path):
        os.rename(begun.path, layout.root + "/elsewhere")
        begun.remove_map()
        return real(path)

    monkeypatch.setattr(module, "ChunkMap", committed_before)
    late = open_partial(layout, DIGEST)
    assert not late.is_current()
    assert not late.refresh()
    late.abandon()
    assert os.listdir(layout.root + "/partial/sha256") == []


def test_readers_outlive_a_discard(layout, begun):
    """Who has the file open can read on; the next to come finds nothing."""
    with begun.reader() as early:
        begun.discard()
        with begun.reader() as late:
            assert early.read(100) == late.read(100) == b"x" * 100
    assert os.listdir(layout.root + "/partial/sha256") == []
    assert not reopened(layout, DIGEST)[0]


def test_readers_have_a_position_of_their_own(begun):
    """One reader's reading does not move another one's place."""
    with begun.reader() as one, begun.reader() as two:
        one.read(60)
        assert two.read(100) == b"x" * 100
