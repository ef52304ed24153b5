"""The one cache in memory: bounded by items, bytes and time."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.core.bounded_cache import BoundedCache


def test_least_recently_used_goes_first():
    """Beyond the bound the item that was neither written nor read for the longest time is dropped."""
    cache = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_bytes():
    """Items are dropped until the sizes fit, and a replaced item's size counts no more."""
    cache = BoundedCache(10, max_bytes=100)
    cache.put("a", 1, size=60)
    cache.put("a", 2, size=50)
    cache.put("b", 3, size=50)
    assert [cache.get("a"), cache.get("b")] == [2, 3]
    cache.put("c", 4, size=1)
    assert [cache.get("a"), cache.get("b"), cache.get("c")] == [None, 3, 4]


def test_larger_than_the_bound():
    """An item that does not fit by itself is not kept."""
    cache = BoundedCache(10, max_bytes=100)
    cache.put("a", 1, size=101)
    assert len(cache) == 0


def test_expiry():
    """An item is good until its time, not at it, and takes no place afterwards."""
    cache = BoundedCache(10)
    cache.put("a", 1, expires=10.0)
    assert cache.get("a", 9.9) == 1
    assert cache.get("a") == 1
    assert cache.get("a", 10.0) is None
    assert "a" not in cache


def test_pop_and_clear():
    """What is dropped frees its bytes."""
    cache = BoundedCache(10, max_bytes=10)
    cache.put("a", 1, size=10)
    assert cache.pop("a") == 1
    assert cache.pop("a") is None
    cache.put("b", 2, size=10)
    cache.clear()
    cache.put("c", 3, size=10)
    assert (len(cache), cache.get("c")) == (1, 3)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40), st.booleans())))
def test_bounds_hold(steps):
    """Whatever is done, neither bound is exceeded, and the last write that fits is there."""
    cache, sizes = BoundedCache(3, max_bytes=50), {}
    for key, size, drop in steps:
        if drop:
            cache.pop(key)
        else:
            cache.put(key, size, size=size)
            assert cache.get(key) == size
        sizes = {key: cache.get(key) for key in "abcdef" if key in cache}
        assert len(sizes) <= 3
        assert sum(sizes.values()) <= 50
