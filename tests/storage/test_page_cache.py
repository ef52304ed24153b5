"""Reading a blob to check it leaves the kernel's page cache as it should be."""

import os
import subprocess

import pytest

from mirror.core.digest import Digest
from mirror.storage.blobs import is_intact
from tests.support.names import MIB
from tests.support.waiting import LIMIT

DATA = bytes(MIB)
DIGEST = Digest.of(DATA)


@pytest.fixture
def tmp_path(disk_path):
    """Where `layout` lies."""
    return disk_path


def resident(layout):
    """Bytes of the blob that are in memory."""
    done = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", layout.blob(DIGEST)],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return int(done.stdout)


def test_hashing_changes_nothing(files, layout):
    """What is in memory stays there, as does what is about to be served; what the scrub alone has read makes room again."""
    files.put(DIGEST, DATA)
    assert is_intact(files, DIGEST)
    assert resident(layout) == len(DATA)
    with open(layout.blob(DIGEST), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(layout):
        pytest.skip("this file system has no page cache of its own")
    assert is_intact(files, DIGEST)
    assert resident(layout) == 0
    assert is_intact(files, DIGEST, keep_cached=True)
    assert resident(layout) == len(DATA)
