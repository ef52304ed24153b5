"""What crashes leave behind."""

import contextlib
import os
import time

import pytest

from mirror.core.digest import Digest
from mirror.maintenance.leftovers import Leftovers
from mirror.storage.blobs import BlobFiles
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.download.world import open_partial

DATA = b"d" * 100_000
DIGEST = Digest.of(DATA)


@pytest.fixture
def layout(tmp_path):
    layout = Layout(str(tmp_path / "store"))
    layout.prepare()
    return layout


@pytest.fixture
def leftovers(layout):
    files, index = BlobFiles(layout, SpaceQuota(layout, 0, 0)), Index(layout.index)
    yield Leftovers(layout, files, index, time.time)
    index.close()


def partials(layout):
    return sorted(os.listdir(f"{layout.root}/partial/sha256"))


def test_partial_of_a_held_blob(layout, leftovers):
    """A worker that opens a partial just as another one commits the blob, and is killed, leaves nothing for long."""
    BlobFiles(layout, SpaceQuota(layout, 0, 0)).put(DIGEST, DATA)
    partial = open_partial(layout, DIGEST)
    partial.begin(len(DATA))
    partial.close()
    leftovers.clear()
    assert partials(layout) == []


def test_partial_before_anything_came(layout, leftovers):
    """Nor does one that is killed before the size is known."""
    open_partial(layout, DIGEST).close()
    leftovers.clear()
    assert partials(layout) == []


def test_what_is_at_work_stays(layout, leftovers):
    """An empty one that a worker is just opening upstream for is left to it, and so is one with bytes."""
    other = Digest.of(b"other")
    with contextlib.closing(open_partial(layout, DIGEST)) as partial:
        assert partial.try_acquire_driver()
        begun = open_partial(layout, other)
        begun.begin(10)
        begun.close()
        leftovers.clear()
        assert partial.is_current()
    assert other.encoded in partials(layout)
