"""What a partial file does when the disk does not."""

import contextlib
import errno
import os

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from mirror.errors import StorageError
from tests.download.world import open_partial, reopened
from tests.support.files import opened_under

DIGEST = Digest.of(b"a blob")


def test_short_writes_are_continued(begun, monkeypatch):
    """A write that the system does only in part is continued until all bytes are there."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, bytes(data)[:7], at))
    begun.write(100, bytes(range(200)))
    with begun.reader() as file:
        assert os.pread(file.fileno(), 200, 100) == bytes(range(200))
    assert begun.map.available(0) == 300


@pytest.mark.parametrize("fails", ["bytes", "mark"])
def test_failed_write_is_not_vouched_for(layout, begun, monkeypatch, fails):
    """If bytes or mark cannot be written, nothing more has arrived than before, here and after a restart."""
    write = os.pwrite

    def broken(fd, data, at):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".map") == (fails == "mark"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", broken)
        with pytest.raises(StorageError) as caught:
            begun.write(100, b"y" * 50)
    assert caught.value.reason == "full"
    assert begun.map.available(0) == 100
    assert reopened(layout, DIGEST)[1].map.available(0) == 100


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_failed_begin_is_no_map(layout, monkeypatch, call):
    """A partial that could not be started is as if it had never been."""
    partial = open_partial(layout, DIGEST)

    def broken(*args):
        raise OSError(errno.EFBIG, "File too large")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, broken)
        with pytest.raises(StorageError):
            partial.begin(CHUNK)
    assert partial.map.size is None
    partial.close()
    assert not reopened(layout, DIGEST)[0]


def test_unopenable_partial_is_a_storage_error(layout, monkeypatch):
    """If bytes or map cannot be opened it says so, and keeps no descriptor."""
    real = os.open

    def begin():
        with contextlib.closing(open_partial(layout, DIGEST)) as partial:
            partial.begin(CHUNK)

    for suffix in (DIGEST.encoded, ".map"):

        def broken(path, *args, suffix=suffix):
            if str(path).endswith(suffix):
                raise OSError(errno.EROFS, "Read-only file system")
            return real(path, *args)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", broken)
            with pytest.raises(StorageError) as caught:
                begin()
        assert caught.value.reason == "read_only"
        assert opened_under(layout.root) == []
