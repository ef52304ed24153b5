"""What the store does when the disk does not: full, read-only, broken, or the process is killed."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.support.files import opened_under
from tests.support.waiting import LIMIT

DATA = b"d" * 100_000
DIGEST = Digest.of(DATA)


def fail(monkeypatch, call, code):
    """Let a call of `os` fail for files of a store."""

    def broken(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, broken)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EFBIG, "full"),
        (errno.EROFS, "read_only"),
        (errno.EIO, "io"),
        (errno.EACCES, "io"),
    ],
)
def test_reason_is_a_bounded_word(files, monkeypatch, code, reason):
    """Each errno becomes one of three reasons, and the message says what was being done and why it failed."""
    fail(monkeypatch, "fsync", code)
    with pytest.raises(StorageError) as caught:
        files.put(DIGEST, DATA)
    assert caught.value.reason == reason
    assert str(DIGEST) in str(caught.value)
    assert os.strerror(code) in str(caught.value)


@pytest.mark.parametrize("call", ["fsync", "rename", "makedirs"])
def test_failed_put_leaves_nothing(files, layout, monkeypatch, call):
    """Wherever a put fails, no blob appears, no temporary file stays, and the next put works."""
    with monkeypatch.context() as patched:
        fail(patched, call, errno.ENOSPC)
        with pytest.raises(StorageError):
            files.put(DIGEST, DATA)
    assert files.open(DIGEST) is None
    assert os.listdir(layout.temporary) == []
    assert opened_under(layout.root) == []
    files.put(DIGEST, DATA)
    assert files.read(DIGEST, len(DATA)) == DATA


@pytest.mark.parametrize("call", ["fsync", "rename", "makedirs"])
def test_failed_adopt_keeps_the_partial(files, layout, monkeypatch, call):
    """A commit that fails shows nothing unfinished, and can be tried again with the same file."""
    path = layout.partial(DIGEST)
    with open(path, "wb") as file:
        file.write(DATA)
        file.flush()
        with monkeypatch.context() as patched:
            fail(patched, call, errno.ENOSPC)
            with pytest.raises(StorageError) as caught:
                files.commit(path, file.fileno(), DIGEST)
        assert caught.value.reason == "full"
        assert files.open(DIGEST) is None
        files.commit(path, file.fileno(), DIGEST)
    assert files.read(DIGEST, len(DATA)) == DATA


def test_without_temporary_directory(files, layout):
    """A store whose directory somebody removed refuses with a StorageError, not with an OSError."""
    os.rmdir(layout.temporary)
    with pytest.raises(StorageError):
        files.put(DIGEST, DATA)


def test_file_size_limit(files, layout):
    """A limit of the process on the size of files counts as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError) as caught:
            files.put(DIGEST, DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.reason == "full"
    assert os.listdir(layout.temporary) == []
    assert files.open(DIGEST) is None


def test_disk_that_is_really_full(small_disk):
    """On a full file system a put fails as `full`, takes no room, and what fits can still be put."""
    layout = Layout(str(small_disk.path / "store"))
    layout.prepare()
    files = BlobFiles(layout, SpaceQuota(layout, 0, 0))
    large = bytes(1 << 20)
    with pytest.raises(StorageError) as caught:
        files.put(Digest.of(large), large)
    assert caught.value.reason == "full"
    assert files.open(Digest.of(large)) is None
    files.put(DIGEST, DATA)
    assert files.read(DIGEST, len(DATA)) == DATA


def test_disk_that_became_read_only(small_disk):
    """On a read-only file system what is held can be read, and a put fails as `read_only`."""
    layout = Layout(str(small_disk.path / "store"))
    layout.prepare()
    files = BlobFiles(layout, SpaceQuota(layout, 0, 0))
    files.put(DIGEST, DATA)
    small_disk.read_only()
    assert files.read(DIGEST, len(DATA)) == DATA
    with pytest.raises(StorageError) as caught:
        files.put(Digest.of(b"other"), b"other")
    assert caught.value.reason == "read_only"


KILLED = """
import os, signal, sys
from mirror.core.digest import Digest
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
setattr(os, sys.argv[2], lambda *args: os.kill(os.getpid(), signal.SIGKILL))
data = b"d" * 100_000
BlobFiles(Layout(sys.argv[1]), SpaceQuota(Layout(sys.argv[1]), 0, 0)).put(Digest.of(data), data)
"""


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_killed_in_the_middle_of_a_put(files, layout, call):
    """A process that is killed while it stores a blob leaves no blob, and nothing that is in the way of the next put."""
    ended = subprocess.run([sys.executable, "-c", KILLED, layout.root, call], timeout=LIMIT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert files.open(DIGEST) is None
    layout.prepare()
    files.put(DIGEST, DATA)
    assert files.read(DIGEST, len(DATA)) == DATA
