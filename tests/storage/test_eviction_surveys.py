"""An eviction surveys a large store as seldom as it can, and believes no survey blindly."""

import fcntl
import time

import pytest

from mirror.core.digest import Digest
from mirror.storage import census
from mirror.storage.eviction import Eviction
from mirror.storage.generation import Generation

BLOCK = 4096
NONE = frozenset()


@pytest.fixture
def held(files):
    """Ten blobs of one block, the first used least recently."""
    digests = [Digest.of(b"blob %d" % number) for number in range(10)]
    for number, digest in enumerate(digests):
        files.put(digest, b"blob %d" % number)
        files.touch(digest, 1000.0 + number)
    return digests


@pytest.fixture
def eviction(layout, files):
    generation = Generation(f"{layout.root}/generation")
    yield Eviction(layout, files, generation)
    generation.close()


@pytest.fixture
def surveys(monkeypatch):
    """The surveys that are made from now on."""
    made, take = [], census.take

    def counted(*args, **kwargs):
        made.append(kwargs)
        return take(*args, **kwargs)

    monkeypatch.setattr(census, "take", counted)
    return made


def soon():
    return time.monotonic() + 30


def left(files, digests):
    return [number for number, digest in enumerate(digests) if files.size(digest) is not None]


def test_one_survey_serves_several_evictions(eviction, files, held, surveys):
    """What a survey has found is used until it is used up: nothing is surveyed again for the next eviction."""
    assert eviction.evict(3 * BLOCK, NONE, soon()).blobs == 3
    assert eviction.evict(2 * BLOCK, NONE, soon()).blobs == 2
    assert left(files, held) == [5, 6, 7, 8, 9]
    assert len(surveys) == 1


def test_what_has_been_used_since_the_survey_stays(eviction, files, held):
    """A blob that was used after the survey does not go in its old place."""
    eviction.evict(BLOCK, NONE, soon())
    files.touch(held[1], 2000.0)
    assert eviction.evict(2 * BLOCK, NONE, soon()).blobs == 2
    assert left(files, held) == [1, 4, 5, 6, 7, 8, 9]


def test_pinned_ones_go_when_nothing_else_is_left(eviction, files, held):
    """Everything that is not pinned goes first, even what was used since the survey; then pinned ones, and they are counted."""
    pinned = frozenset(held[:2])
    eviction.evict(BLOCK, pinned, soon())
    files.touch(held[3], 2000.0)
    gone = eviction.evict(8 * BLOCK, pinned, soon())
    assert (gone.blobs, gone.pinned) == (8, 1)
    assert left(files, held) == [1]


def test_all_that_there_is(eviction, files, held):
    """An eviction that wants more than there is ends with an empty store."""
    assert eviction.evict(99 * BLOCK, NONE, soon()).blobs == 10
    assert left(files, held) == []


def test_it_stops(eviction, files, held, surveys):
    """Once stopped nothing more goes, and nothing is surveyed."""
    eviction.stop()
    assert eviction.evict(3 * BLOCK, NONE, soon()).blobs == 0
    assert len(left(files, held)) == 10
    assert surveys == []


def test_who_waits_for_another_one_takes_what_that_one_has_freed(layout, eviction, files, held):
    """While somebody else evicts, whoever has got enough by that goes on at once and removes nothing."""
    with open(layout.eviction_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = iter([False, True])
        assert eviction.evict(BLOCK, NONE, time.monotonic() + 600, lambda: next(answers)).blobs == 0
    assert len(left(files, held)) == 10
