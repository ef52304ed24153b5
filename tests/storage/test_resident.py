"""Whether bytes are in memory, piece by piece; the kernel's answers are given by the test."""

import errno
import os

import pytest

from mirror.storage.page_cache import read_resident, read_resident_into, resident_until
from tests.support.names import KIB, MIB

PIECE = 512 * KIB


@pytest.fixture
def kernel(monkeypatch):
    """Has in memory what lies in one of `parts`."""

    class Kernel:
        parts = ()
        error = errno.EAGAIN

        def preadv(self, descriptor, buffers, position, flags):
            if any(start <= position < stop for start, stop in self.parts):
                return 1
            raise OSError(self.error, os.strerror(self.error))

    kernel = Kernel()
    monkeypatch.setattr(os, "preadv", kernel.preadv)
    return kernel


@pytest.mark.parametrize(
    ("parts", "start", "stop", "end"),
    [
        (((0, 4 * MIB),), 0, 4 * MIB, 4 * MIB),
        ((), 0, 4 * MIB, 0),
        ((), 5, 6, 5),
        (((0, MIB),), 0, 4 * MIB, MIB),
        (((0, MIB),), 100, 4 * MIB, MIB),
        (((0, 4 * MIB - 1),), 0, 4 * MIB, 4 * MIB - PIECE),
        (((0, 100),), 50, 200, 50),
        (((0, PIECE + 10),), 0, PIECE + 100, PIECE),
    ],
)
def test_end_of_what_is_there(kernel, parts, start, stop, end):
    """It is where the first piece begins of which a byte is missing, and never behind it."""
    kernel.parts = parts
    assert resident_until(0, start, stop) == end


def test_file_system_that_cannot_tell(kernel):
    """Then all is taken to be there: nothing is better than before, and nothing worse."""
    kernel.error = errno.EOPNOTSUPP
    assert resident_until(0, 0, MIB) == MIB


def test_read_without_waiting(tmp_path):
    """Bytes that are in memory are read; of a file that has become too short, nothing is."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open(path, "rb") as file:
        assert read_resident(file.fileno(), 2, 6) == b"2345"
        assert read_resident(file.fileno(), 8, 12) is None


def test_read_that_has_to_wait(kernel):
    """It is left to a thread."""
    assert read_resident(0, 0, 10) is None
    assert read_resident_into(0, bytearray(10), 0) is None


def test_read_into_memory(tmp_path):
    """What is there is read, and nothing at the end of the file; an error of the file is raised."""
    path, buffer = tmp_path / "file", bytearray(4)
    path.write_bytes(b"0123456789")
    with open(path, "rb") as file:
        assert read_resident_into(file.fileno(), buffer, 8) == 2
        assert buffer[:2] == b"89"
        assert read_resident_into(file.fileno(), buffer, 10) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_resident_into(-1, buffer, 0)


def test_read_where_the_file_system_cannot_tell(monkeypatch, tmp_path):
    """The bytes are read like any others."""
    path, real = tmp_path / "file", os.preadv
    path.write_bytes(b"0123456789")

    def preadv(descriptor, buffers, position, flags=0):
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no flags here")
        return real(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", preadv)
    with open(path, "rb") as file:
        assert read_resident(file.fileno(), 2, 6) == b"2345"
