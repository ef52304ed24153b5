"""A cache that is emptied when the generation changes, in this process or another one."""

import pytest

from mirror.cache import generation_cache
from mirror.cache.generation_cache import GenerationCache
from mirror.storage.generation import Generation


@pytest.fixture
def generation(tmp_path):
    one = Generation(str(tmp_path / "generation"))
    yield one
    one.close()


@pytest.fixture
def cache(generation):
    return GenerationCache(generation, max_entries=3)


def put(cache, key, *, size=1, expires=100.0, generation=None):
    cache.put(key, f"value of {key}", size, expires, generation or cache.generation())


def test_value_lasts_until_it_expires(cache):
    put(cache, "a")
    assert cache.get("a", 99.9) == "value of a"
    assert cache.get("a", 100.0) is None


def test_change_by_another_process_empties_it(cache, tmp_path):
    put(cache, "a")
    other = Generation(str(tmp_path / "generation"))
    other.change()
    other.close()
    assert cache.get("a", 0.0) is None


def test_value_read_before_a_change_is_not_kept(cache, generation):
    """What was read from the store before a change may be wrong after it."""
    before = cache.generation()
    generation.change()
    put(cache, "a", generation=before)
    assert cache.get("a", 0.0) is None


def test_change_that_nobody_has_seen_keeps_nothing(cache, generation):
    """A value is not kept beside entries of an older generation."""
    put(cache, "old")
    generation.change()
    put(cache, "new")
    assert cache.get("old", 0.0) is None
    assert cache.get("new", 0.0) is None


def test_least_recently_used_entry_is_evicted(cache):
    for key in "abc":
        put(cache, key)
    cache.get("a", 0.0)
    put(cache, "d")
    assert [key for key in "abcd" if cache.get(key, 0.0) is not None] == ["a", "c", "d"]


def test_large_value_is_not_kept(cache):
    put(cache, "large", size=generation_cache._MAX_VALUE_BYTES + 1)
    assert cache.get("large", 0.0) is None
