"""An eviction surveys a large store as seldom as it can, and believes no survey blindly."""

import fcntl
import time

import pytest

from mirror.core.digest import Digest
from mirror.core.eviction import Goal, Partials, Plan, Shortage
from mirror.maintenance import store_scan
from mirror.maintenance.eviction import Eviction
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
    made, take = [], store_scan.take

    def counted(*args, **kwargs):
        made.append(kwargs)
        return take(*args, **kwargs)

    monkeypatch.setattr(store_scan, "take", counted)
    return made


def at_any_price(size):
    """Have so many bytes go, of pinned blobs if need be."""
    return Plan(size, size)


def soon():
    return time.monotonic() + 30


def left(files, digests):
    return [number for number, digest in enumerate(digests) if files.size(digest) is not None]


def test_one_survey_serves_several_evictions(eviction, files, held, surveys):
    """What a survey has found is used until it is used up: nothing is surveyed again for the next eviction."""
    assert eviction.evict(at_any_price(3 * BLOCK), NONE, soon()).blobs == 3
    assert eviction.evict(at_any_price(2 * BLOCK), NONE, soon()).blobs == 2
    assert left(files, held) == [5, 6, 7, 8, 9]
    assert len(surveys) == 1


def test_what_has_been_used_since_the_survey_stays(eviction, files, held):
    """A blob that was used after the survey does not go in its old place."""
    eviction.evict(at_any_price(BLOCK), NONE, soon())
    files.touch(held[1], 2000.0)
    assert eviction.evict(at_any_price(2 * BLOCK), NONE, soon()).blobs == 2
    assert left(files, held) == [1, 4, 5, 6, 7, 8, 9]


def test_pinned_ones_go_when_nothing_else_is_left(eviction, files, held):
    """Everything that is not pinned goes first, even what was used since the survey; then pinned ones, and they are counted."""
    pinned = frozenset(held[:2])
    eviction.evict(at_any_price(BLOCK), pinned, soon())
    files.touch(held[3], 2000.0)
    gone = eviction.evict(at_any_price(8 * BLOCK), pinned, soon())
    assert (gone.blobs, gone.pinned) == (8, 1)
    assert left(files, held) == [1]


def test_all_that_there_is(eviction, files, held):
    """An eviction that wants more than there is ends with an empty store."""
    assert eviction.evict(at_any_price(99 * BLOCK), NONE, soon()).blobs == 10
    assert left(files, held) == []


def test_it_stops(eviction, files, held, surveys):
    """Once stopped nothing more goes, and nothing is surveyed."""
    eviction.stop()
    assert eviction.evict(at_any_price(3 * BLOCK), NONE, soon()).blobs == 0
    assert len(left(files, held)) == 10
    assert surveys == []


def test_who_waits_for_another_one_takes_what_that_one_has_freed(layout, eviction, files, held):
    """While somebody else evicts, whoever has got enough by that goes on at once and removes nothing."""
    with open(layout.eviction_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = iter([False, True])
        assert eviction.evict(at_any_price(BLOCK), NONE, time.monotonic() + 600, lambda: next(answers)).blobs == 0
    assert len(left(files, held)) == 10


def out_of_reach(size):
    return Shortage(free=Goal(size, size))


def test_a_goal_out_of_reach_is_no_reason_to_survey_again(layout, files, held, surveys):
    """While nothing comes, what cannot be reached is known from one survey, for a while; another blob is looked at at once."""
    generation, now = Generation(f"{layout.root}/generation"), [1000.0]
    eviction = Eviction(layout, files, generation, clock=lambda: now[0])

    def plan():
        return eviction.plan(out_of_reach(11 * BLOCK), Partials(), lambda: NONE, soon())

    for _ in range(5):
        assert plan() == Plan(unreachable=frozenset({"min_free"}))
    assert len(surveys) == 1
    now[0] += 301.0
    assert plan() == Plan(unreachable=frozenset({"min_free"}))
    assert len(surveys) == 2
    files.put(Digest.of(b"another"), b"another")
    assert plan() == Plan(11 * BLOCK, reason="min_free")
    assert len(surveys) == 3
    generation.close()


def test_what_others_have_evicted_is_not_counted_on(layout, eviction, files, held, surveys):
    """Blobs that went since the survey do not make a goal look as if it could be reached."""
    assert eviction.plan(out_of_reach(8 * BLOCK), Partials(), lambda: NONE, soon()).size == 8 * BLOCK
    for digest in held[:5]:
        files.delete(digest)
    assert eviction.plan(out_of_reach(8 * BLOCK), Partials(), lambda: NONE, soon()) == Plan(unreachable=frozenset({"min_free"}))


def test_idle_partials_alone(eviction, held, surveys):
    """If abandoned downloads will do, no blob is even looked at."""
    assert eviction.plan(out_of_reach(BLOCK), Partials(idle=BLOCK), lambda: NONE, soon()).size == BLOCK
    assert surveys == []
