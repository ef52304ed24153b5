"""How much is evicted: enough, no pin for others' bytes, and nothing for a goal that cannot be reached."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.eviction import Evictable, Goal, Plan, Shortage, plan

NO_SIZE, NO_FREE = frozenset({"max_size"}), frozenset({"min_free"})

SIZES = st.integers(0, 1000)
GOALS = st.tuples(SIZES, SIZES).map(lambda pair: Goal(max(pair), min(pair)))
SHORTAGES = st.builds(Shortage, GOALS, GOALS)
STORES = st.builds(Evictable, SIZES, SIZES)


@pytest.mark.parametrize(
    ("shortage", "store", "expected"),
    [
        (Shortage(), Evictable(10, 10), Plan()),
        # The low-water mark, if what is not pinned will do.
        (Shortage(size=Goal(8, 3)), Evictable(10, 10), Plan(8)),
        (Shortage(free=Goal(8, 3)), Evictable(10, 10), Plan(8, reason="min_free")),
        # Else the limit itself.
        (Shortage(size=Goal(12, 3)), Evictable(10, 10), Plan(3)),
        (Shortage(free=Goal(12, 3)), Evictable(10, 10), Plan(3, reason="min_free")),
        # Pins for the store's own size only.
        (Shortage(size=Goal(20, 13)), Evictable(10, 10), Plan(13, 13)),
        (Shortage(free=Goal(20, 13)), Evictable(10, 10), Plan(unreachable=NO_FREE)),
        # Nothing where everything would not do.
        (Shortage(size=Goal(40, 30)), Evictable(10, 10), Plan(unreachable=NO_SIZE)),
        (Shortage(free=Goal(40, 30)), Evictable(10, 10), Plan(unreachable=NO_FREE)),
        # What is above the limit goes, whatever others have done to the disk.
        (Shortage(size=Goal(4, 2), free=Goal(40, 30)), Evictable(10, 10), Plan(4, unreachable=NO_FREE)),
        (Shortage(size=Goal(4, 2), free=Goal(6, 5)), Evictable(10, 10), Plan(6, reason="min_free")),
        (Shortage(size=Goal(13, 13), free=Goal(6, 5)), Evictable(10, 10), Plan(13, 13)),
    ],
)
def test_what_is_planned(shortage, store, expected):
    """Each bound by itself and both together."""
    assert plan(shortage, store) == expected


@pytest.mark.parametrize(
    "shortage", [Shortage(Goal(4, 4), Goal(30, 30)), Shortage(Goal(30, 30), Goal(4, 4)), Shortage(Goal(30, 30))]
)
def test_nothing_goes_for_half_a_goal(shortage):
    """For a file that has to fit nothing goes unless it will fit."""
    assert plan(shortage, Evictable(10, 10), both=True).size == 0


@given(SHORTAGES, STORES, st.booleans())
def test_no_plan_is_in_vain(shortage, store, both):
    """Never more than there is or is wanted, pins only for the size, and nothing for a free space that does not come back."""
    made = plan(shortage, store, both=both)
    assert 0 <= made.with_pins <= made.size <= max(shortage.size.wanted, shortage.free.wanted)
    assert made.size <= store.unpinned + (store.pinned if made.with_pins else 0)
    assert made.with_pins <= shortage.size.needed
    assert ("min_free" in made.unreachable) == (shortage.free.needed > store.unpinned)
    assert ("max_size" in made.unreachable) == (shortage.size.needed > store.unpinned + store.pinned)
    if made.with_pins:
        assert made.with_pins == shortage.size.needed
    if made.size > shortage.size.wanted:
        assert made.size >= shortage.free.needed
        assert made.size <= store.unpinned
    if both and made.size:
        assert made.size >= max(shortage.size.needed, shortage.free.needed)
