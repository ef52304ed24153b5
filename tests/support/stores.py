"""Fixtures of stores in all conditions: healthy, full, read-only."""

import gc
import os
import subprocess

import pytest

from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.support.files import opened_under
from tests.support.waiting import LIMIT


@pytest.fixture
def layout(tmp_path):
    """A prepared store, which has to be left without an open file."""
    layout = Layout(str(tmp_path / "store"))
    layout.prepare()
    yield layout
    assert opened_under(layout.root) == []


@pytest.fixture
def files(layout):
    return BlobFiles(layout, SpaceQuota(layout, 0, 0))


class SmallDisk:
    """A file system of its own with hardly any room."""

    def __init__(self, path):
        self.path = path

    def read_only(self):
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True, timeout=LIMIT)


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of 256 KiB, or of the size that a test asks for; only root can have one."""
    path, size = tmp_path / "disk", getattr(request, "param", "256k")
    path.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False, capture_output=True, timeout=10
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount")
    yield SmallDisk(path)
    # A connection of a thread that has ended is closed when it is collected.
    gc.collect()
    subprocess.run(["umount", path], check=True, timeout=LIMIT)
