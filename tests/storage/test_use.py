"""When blobs were used, and what a walk over the store finds."""

import os

import pytest

from mirror.core.digest import Digest

DAY = 86400.0


@pytest.fixture
def digest(files):
    files.put(Digest.of(b"blob"), b"blob")
    return Digest.of(b"blob")


def test_touch_and_used(files, digest):
    """The time of the last use is kept to a fraction of a second; of what is not held there is none."""
    files.touch(digest, 2_000_000_000.25)
    assert files.used(digest) == 2_000_000_000.25
    files.touch(Digest.of(b"none"), 1.0)
    assert files.used(Digest.of(b"none")) is None


def test_latest_note_counts(files, digest):
    """Notes may come in any order, from any process."""
    files.touch(digest, 2_000_000_000.0)
    files.touch(digest, 1_999_999_990.0)
    assert files.used(digest) == 2_000_000_000.0


def test_wrong_clock_is_not_believed(files, digest):
    """A use that was noted years ahead does not keep a blob for ever."""
    files.touch(digest, 2_000_000_000.0 + 400 * DAY)
    files.touch(digest, 2_000_000_000.0)
    assert files.used(digest) == 2_000_000_000.0


def test_walk_finds_every_blob(layout, files):
    """A walk finds what is held, of all algorithms, by size and use, and nothing else; a shard's only its own."""
    held = {}
    for i in range(40):
        data = str(i).encode()
        digest = Digest.of(data, "sha512" if i % 3 == 0 else "sha256")
        files.put(digest, data)
        files.touch(digest, 2_000_000_000.0 + i)
        held[digest] = (len(data), 2_000_000_000.0 + i)
    (directory,) = {os.path.dirname(layout.blob(digest)) for digest in list(held)[:1]}
    with open(f"{directory}/no digest", "w"), open(f"{layout.root}/blobs/sha256/stray", "w"):
        pass
    assert {file.digest: (file.size, file.used) for file in files.walk()} == held
    shards = [list(files.walk(f"{i:02x}")) for i in range(256)]
    assert {file.digest for shard in shards for file in shard} == set(held)
    assert sum(map(len, shards)) == len(held)


def test_walk_beside_changes(layout, files):
    """What vanishes during a walk is left out, and everything that stays is found."""
    blobs = [Digest.of(str(i).encode()) for i in range(30)]
    for i, digest in enumerate(blobs):
        files.put(digest, str(i).encode())
    found = set()
    for file in files.walk():
        if not found:
            for digest in blobs[:10]:
                files.delete(digest)
        found.add(file.digest)
    assert set(blobs[10:]) <= found


def test_walk_of_an_empty_store(files):
    """An empty store has no blobs, and a shard that was never made neither."""
    assert list(files.walk()) == list(files.walk("ab")) == []
