"""Rows about referrers go with their manifests, in a pass that yields to requests and needs little memory."""

import tracemalloc

import pytest

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.attachments import KeptList
from mirror.storage.index import Index
from tests.support.names import KIB, MIB

REPOSITORY = Repository.parse("docker.io", "team/app")


@pytest.fixture
def index(tmp_path):
    one = Index(str(tmp_path / "index"))
    yield one
    one.close()


def put_lists(index, count, size):
    for number in range(count):
        kept = KeptList(b"x" * size, (), None, 1.0)
        index.attachments.put_list(REPOSITORY, Digest.of(b"%d" % number), "", kept)


@pytest.mark.parametrize("is_held", [True, False])
def test_drop_needs_little_memory(index, is_held):
    """However many long lists there are, no more than one of them is in memory."""
    put_lists(index, 100, 200 * KIB)
    tracemalloc.start()
    try:
        dropped = index.attachments.drop(lambda repository, digest: is_held, 2.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert dropped == (0 if is_held else 100)
    assert peak < 2 * MIB


def test_drop_pauses_and_can_be_ended(index):
    """A pass over many rows pauses every few hundred, and ends there if it is told to."""
    put_lists(index, 600, 1)
    answers = iter([False, True])
    dropped = index.attachments.drop(lambda repository, digest: False, 2.0, lambda: next(answers))
    assert 0 < dropped < 600
    assert index.attachments.drop(lambda repository, digest: False, 2.0) == 600 - dropped
