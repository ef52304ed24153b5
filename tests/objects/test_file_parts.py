"""Parts of held files for uploads."""

import os
import re
from pathlib import Path

import pytest

from mirror.errors import StorageError
from mirror.objects.file_parts import read_part

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@pytest.fixture
def file(tmp_path):
    """A file that is no whole number of pages long."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * MIB + 100))
    with path.open("rb") as opened:
        yield opened


@pytest.mark.parametrize(("start", "length"), [(0, 1), (PAGE, 5000), (0, 3 * MIB + 100), (MIB, 2 * MIB + 100), (3 * MIB, 100)])
def test_content(file, start, length):
    part = read_part(file.fileno(), start, length)
    assert bytes(part) == os.pread(file.fileno(), length, start)


def test_content_outlives_the_descriptor(file):
    expected = os.pread(file.fileno(), MIB, MIB)
    part = read_part(file.fileno(), MIB, MIB)
    file.close()
    assert bytes(part) == expected


@pytest.mark.parametrize(("start", "length"), [(0, 4 * MIB), (2 * MIB, MIB + 101), (4 * MIB, MIB), (3 * MIB, 101), (4 * MIB, 1)])
def test_file_that_has_become_shorter(file, start, length):
    """Also if the page of its end has the bytes: they are not the file's."""
    with pytest.raises(StorageError, match="shorter"):
        read_part(file.fileno(), start, length)


def test_large_parts_take_no_memory_of_their_own(tmp_path):
    """An upload holds several of them."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * MIB))
    with path.open("rb") as opened:
        before = own_memory()
        parts = [read_part(opened.fileno(), start, 8 * MIB) for start in range(0, 64 * MIB, 8 * MIB)]
        assert all(bytes(part[: 8 * MIB : PAGE]).count(0) == 8 * MIB // PAGE for part in parts)
        assert own_memory() - before < 16 * MIB


def own_memory():
    """Bytes of memory that belong to this process alone."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
