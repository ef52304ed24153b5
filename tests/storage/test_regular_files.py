"""What is no regular file is no blob: it is not served, counted, evicted or scrubbed, and is in no blob's way."""

import os
import threading
import time

import pytest

from mirror.core.digest import Digest
from mirror.maintenance import store_scan
from mirror.maintenance.leftovers import Leftovers
from mirror.storage.blobs import is_intact
from mirror.storage.index import Index

DATA = b"content of a blob"
DIGEST = Digest.of(DATA)
SECRET = b"what lies outside of the store"
AT_ONCE = 5.0


def directory(path):
    os.makedirs(path)


def full_directory(path):
    os.makedirs(path)
    with open(f"{path}/file", "w") as file:
        file.write("somebody's")


def fifo(path):
    os.mkfifo(path)


def link(path):
    target = f"{os.path.dirname(path)}/../../../outside"
    with open(target, "wb") as file:
        file.write(SECRET)
    os.symlink(os.path.abspath(target), path)


def dangling_link(path):
    os.symlink("/nonexistent", path)


def device(path):
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("needs the right to make devices")


@pytest.fixture(params=[directory, full_directory, fifo, link, dangling_link, device])
def stray(request, layout):
    """Something in a blob's place."""
    path = layout.blob(DIGEST)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    request.param(path)
    return path


def at_once(work):
    """What `work` returns, if it returns: opening a pipe waits for a writer, who never comes."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(AT_ONCE)
    assert found, "it waits"
    return found[0]


def test_it_is_not_held(files, stray):
    """It cannot be opened, read or measured, has no last use, and nothing is noted at it or at what it leads to."""
    assert at_once(lambda: files.open(DIGEST)) is None
    assert at_once(lambda: files.read(DIGEST, 1 << 20)) is None
    assert at_once(lambda: is_intact(files, DIGEST)) is None
    assert files.size(DIGEST) is None
    assert files.used(DIGEST) is None
    before = os.lstat(stray).st_mtime
    files.touch(DIGEST, 5.0)
    assert os.lstat(stray).st_mtime == before


def test_nobody_counts_it(files, layout, stray):
    """Neither the list of blobs nor the scan of the store knows of it."""
    assert list(files.walk()) == []
    found = store_scan.take(layout, lambda: False, 9)
    assert (found.blobs, found.taken, list(found.candidates())) == (0, 0, [])


def test_deleting_it_frees_nothing(files, stray):
    """The account is not given bytes back that nobody reserved, and what it leads to stays."""
    assert files.delete(DIGEST) == 0
    assert files.quota.figures() == (0, 0)


@pytest.mark.parametrize("how", ["put", "adopt"])
def test_the_blob_takes_its_place(files, layout, stray, how):
    """A blob that is stored under this name takes the place, and is held and counted once."""
    if how == "put":
        files.put(DIGEST, DATA)
    else:
        path = layout.partial(DIGEST)
        files.quota.reserve(len(DATA))
        with open(path, "wb") as file:
            file.write(DATA)
            file.flush()
            files.commit(path, file.fileno(), DIGEST)
    assert files.read(DIGEST, 1 << 20) == DATA
    assert files.quota.figures() == (4096, 1)


def test_what_was_in_the_way_goes(files, layout):
    """A directory that a blob has replaced goes with what else is left over; what lies there for a moment stays."""
    path = layout.blob(DIGEST)
    os.makedirs(path)
    full_directory(f"{path}/deep")
    files.put(DIGEST, DATA)
    index = Index(layout.index)
    try:
        Leftovers(layout, files, index).clear()
        assert len(os.listdir(layout.temporary)) == 1
        Leftovers(layout, files, index, lambda: time.time() + 7200).clear()
        assert os.listdir(layout.temporary) == []
    finally:
        index.close()


def test_refused_advice_drops_no_blob(files, monkeypatch):
    """A sandbox that refuses advice to the kernel does not make a held blob a damaged one."""
    files.put(DIGEST, DATA)

    def refused(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "posix_fadvise", refused)
    assert is_intact(files, DIGEST) is True
