"""The contract of the store's verified files."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mirror.core.digest import Digest
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota

DATA = b"content of a blob" * 1000
DIGEST = Digest.of(DATA)


def scratch(layout, data=DATA):
    """A finished partial file with its descriptor, as a download leaves it to `adopt`."""
    path = layout.partial(DIGEST)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, data)
    return path, descriptor


def content(held):
    try:
        return os.pread(held.file.fileno(), held.size + 1, 0)
    finally:
        held.close()


def test_absent_blob_is_none_everywhere(files):
    """What is not held cannot be opened, measured or read, and deleting it frees nothing."""
    assert files.open(DIGEST) is None
    assert files.size(DIGEST) is None
    assert files.read(DIGEST, 1 << 30) is None
    assert files.delete(DIGEST) == 0


@pytest.mark.parametrize("data", [b"", b"x", DATA])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_put_then_held(files, data, algorithm):
    """A blob that was put has its size and content, under both algorithms and also if it is empty."""
    digest = Digest.of(data, algorithm)
    files.put(digest, data)
    assert files.size(digest) == len(data)
    assert files.read(digest, len(data)) == data
    held = files.open(digest)
    assert held.size == len(data)
    assert content(held) == data


def test_put_lies_under_its_digest_and_leaves_nothing_else(files, layout):
    """The file is where the layout says, private to the mirror's user, and no temporary file stays."""
    files.put(DIGEST, DATA)
    status = os.stat(layout.blob(DIGEST))
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert layout.blob(DIGEST) == f"{layout.root}/blobs/sha256/{DIGEST.encoded[:2]}/{DIGEST.encoded}"
    assert os.listdir(layout.temporary) == []


def test_read_keeps_its_limit(files):
    """A blob that is longer than the limit is not read, one that is just as long is."""
    files.put(DIGEST, DATA)
    assert files.read(DIGEST, len(DATA) - 1) is None
    assert files.read(DIGEST, len(DATA)) == DATA


def test_open_file_is_the_pin(files):
    """A reader finishes although the blob is deleted meanwhile; who comes later finds nothing."""
    files.put(DIGEST, DATA)
    held = files.open(DIGEST)
    assert files.delete(DIGEST) == len(DATA)
    assert files.open(DIGEST) is None
    assert content(held) == DATA


def test_put_again_changes_nothing_for_readers(files):
    """The same blob may be put twice; who has the first file open keeps it."""
    files.put(DIGEST, DATA)
    held = files.open(DIGEST)
    files.put(DIGEST, DATA)
    assert content(held) == DATA
    assert files.read(DIGEST, len(DATA)) == DATA


def test_blob_that_vanished_behind_our_back(files, layout):
    """A blob that somebody removed from disk with its directory is not held, and can be put again."""
    files.put(DIGEST, DATA)
    os.unlink(layout.blob(DIGEST))
    os.rmdir(os.path.dirname(layout.blob(DIGEST)))
    assert files.open(DIGEST) is None
    files.put(DIGEST, DATA)
    assert files.read(DIGEST, len(DATA)) == DATA


def test_directory_in_a_blobs_place_is_not_held(files, layout):
    """Something that is no file is no blob."""
    os.makedirs(layout.blob(DIGEST))
    assert files.open(DIGEST) is None


def test_adopt_makes_the_file_the_blob(files, layout):
    """A finished file is moved, not copied."""
    path, descriptor = scratch(layout)
    inode = os.fstat(descriptor).st_ino
    files.commit(path, descriptor, DIGEST)
    os.close(descriptor)
    assert os.stat(layout.blob(DIGEST)).st_ino == inode
    assert not os.path.exists(path)
    assert files.read(DIGEST, len(DATA)) == DATA


@pytest.mark.parametrize("how", ["put", "adopt"])
def test_content_is_flushed_before_the_name(files, layout, monkeypatch, how):
    """After a power loss a name never leads to missing content: file, then name, then directories are flushed."""
    done = []
    flush, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("flush", os.readlink(f"/proc/self/fd/{fd}"))), flush(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(("rename", a, b)), rename(a, b)))
    path, descriptor = scratch(layout)
    if how == "put":
        files.put(DIGEST, DATA)
    else:
        files.commit(path, descriptor, DIGEST)
    os.close(descriptor)
    renamed = next(i for i, step in enumerate(done) if step[0] == "rename")
    source, target = done[renamed][1:]
    assert ("flush", source) in done[:renamed]
    assert done[renamed + 1 :] == [("flush", os.path.dirname(target))]
    assert ("flush", f"{layout.root}/blobs/sha256") in done[:renamed]


def test_many_put_the_same(files, layout):
    """Several writers of one blob do not disturb each other."""
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(files.put, DIGEST, DATA) for _ in range(40)]:
            future.result(10)
    assert files.read(DIGEST, len(DATA)) == DATA
    assert os.listdir(layout.temporary) == []


class StoreAsMapping(RuleBasedStateMachine):
    """Whatever is done to it, the store is a mapping of digests to content, and open blobs are snapshots of it."""

    names = st.sampled_from([b"", b"a", b"b" * 70_000, b"c" * 5])
    directory = None

    def __init__(self):
        super().__init__()
        self.layout = Layout(os.path.join(self.directory, os.urandom(8).hex()))
        self.layout.prepare()
        self.files = BlobFiles(self.layout, SpaceQuota(self.layout, 0, 0))
        self.model = {}
        self.open = []

    @rule(data=names)
    def put(self, data):
        self.files.put(Digest.of(data), data)
        self.model[Digest.of(data)] = data

    @rule(data=names)
    def delete(self, data):
        assert self.files.delete(Digest.of(data)) == len(self.model.pop(Digest.of(data), b""))

    @rule(data=names)
    def open_one(self, data):
        held = self.files.open(Digest.of(data))
        assert (held is not None) == (Digest.of(data) in self.model)
        if held is not None:
            self.open.append((held, data))

    @rule()
    def reopen(self):
        self.layout.prepare()
        self.files = BlobFiles(self.layout, SpaceQuota(self.layout, 0, 0))

    @invariant()
    def sizes_agree(self):
        for data in (b"", b"a", b"b" * 70_000, b"c" * 5):
            expected = self.model.get(Digest.of(data))
            assert self.files.size(Digest.of(data)) == (None if expected is None else len(expected))

    def teardown(self):
        for held, data in self.open:
            assert content(held) == data


def test_store_is_a_mapping(tmp_path):
    """Any sequence of puts, deletions, opens and restarts leaves what a mapping would hold."""
    from hypothesis.stateful import run_state_machine_as_test

    StoreAsMapping.directory = str(tmp_path)
    run_state_machine_as_test(StoreAsMapping, settings=settings(max_examples=15, stateful_step_count=15, deadline=None))
