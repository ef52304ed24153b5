"""Reading a blob to check it leaves the kernel's page cache as it should be."""

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


def test_file_that_is_being_served_stays(files, layout):
    """Hashed behind a client it is as quick to serve as before; hashed by the scrub it makes room for what is in use."""
    files.put(DIGEST, DATA)
    assert is_intact(files, DIGEST, keep_cached=True)
    assert resident(layout) == len(DATA)
    assert is_intact(files, DIGEST)
    if resident(layout) == len(DATA):
        pytest.skip("this file system has no page cache of its own")
    assert resident(layout) == 0
