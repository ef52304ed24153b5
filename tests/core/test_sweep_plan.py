"""Which objects of a bucket go first."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.digest_filter import DigestFilter
from mirror.core.sweep_plan import SweepPlan, SweptObject

NOW = 1_000_000_000.0
DAY, HOUR = 86_400, 3600


def digest(number):
    return Digest.of(str(number).encode())


def plan(objects, wanted, most=1000):
    made = SweepPlan(wanted, most, NOW)
    for found in objects:
        made.offer(found)
    return made.selected()


def found(number, size=10, age=2 * DAY, *, tagged=True, manifest=False):
    return SweptObject(digest(number), manifest, size, NOW - age, tagged)


def test_what_nobody_needs_goes_first():
    """Then by use; and what somebody has used within a day is needed."""
    old, new, unneeded, fresh = (
        found(1, age=9 * DAY),
        found(2),
        found(3, age=2 * DAY - HOUR, tagged=False),
        found(4, age=HOUR, tagged=False),
    )
    assert plan([fresh, new, old, unneeded], 10) == [unneeded]
    assert plan([fresh, new, old, unneeded], 35) == [unneeded, old, new, fresh]


def test_manifests_go_before_their_blobs():
    blob, manifest = found(1, age=2 * DAY), found(2, age=2 * DAY - 60, manifest=True)
    assert plan([blob, manifest], 5) == [manifest]


def test_nothing_is_wanted():
    assert plan([found(1)], 0) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), max_size=40), st.integers(1, 500))
def test_as_much_as_is_wanted_and_no_object_more(sizes, wanted):
    """Whatever the order in which they are offered."""
    objects = [found(number, size, 2 * DAY + age * HOUR) for number, (size, age) in enumerate(sizes)]
    selected = plan(objects, wanted)
    total = sum(one.size for one in selected)
    assert total >= min(wanted, sum(one.size for one in objects))
    assert not selected or total - selected[-1].size < wanted
    left = set(objects) - set(selected)
    assert all(one.used // HOUR >= selected[-1].used // HOUR for one in left) if selected else not objects


def test_memory_is_bounded():
    assert len(plan([found(number) for number in range(100)], 1000, most=7)) == 7


def test_filter_finds_what_was_added():
    """And hardly anything else."""
    made = DigestFilter()
    assert all(made.add(digest(number)) for number in range(2000))
    assert not any(made.add(digest(number)) for number in range(2000))
    assert all(digest(number) in made for number in range(2000))
    assert sum(digest(number) in made for number in range(2000, 4000)) < 3
