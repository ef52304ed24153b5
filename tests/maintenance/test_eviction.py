"""Eviction: the least recently used goes first, pinned last, no more than is needed, and readers finish."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.eviction import Plan
from mirror.maintenance import store_scan
from mirror.maintenance.eviction import Evicted, Eviction
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.support.names import KIB
from tests.support.waiting import LIMIT

NOBODY = frozenset()


@pytest.fixture
def generation(layout):
    one = Generation(f"{layout.root}/generation")
    yield one
    one.close()


@pytest.fixture
def eviction(layout, files, generation):
    return Eviction(layout, files, generation)


@pytest.fixture
def walks(monkeypatch):
    """How often the whole store was walked over."""
    counted, take = [], store_scan.take

    def counting(*args, **kwargs):
        counted.append(1)
        return take(*args, **kwargs)

    monkeypatch.setattr(store_scan, "take", counting)
    return counted


def put(files, name, used, size=10 * KIB):
    data = name.encode().ljust(size, b".")
    digest = Digest.of(data)
    files.put(digest, data)
    os.utime(files._layout.blob(digest), (used, used))
    return digest


def at_any_price(size):
    """Have so many bytes go, of pinned blobs if need be."""
    return Plan(size, size)


def soon():
    return time.monotonic() + 30


def held(files):
    return {file.digest for file in files.walk()}


def test_least_recently_used_goes_first(files, eviction):
    """Blobs go in the order of their last use, and only as many as are needed."""
    blobs = [put(files, f"{i}", 1000 + i) for i in (3, 1, 4, 0, 2)]
    order = [blobs[3], blobs[1], blobs[4], blobs[0], blobs[2]]
    evicted = eviction.evict(at_any_price(12 * KIB + 1), NOBODY, soon())
    assert (evicted.blobs, evicted.size, evicted.pinned) == (2, 20 * KIB, 0)
    assert held(files) == set(order[2:])
    # What the walk has found is good for further rounds.
    for i in (2, 3, 4):
        assert eviction.evict(at_any_price(1), NOBODY, soon()).blobs == 1
        assert held(files) == set(order[i + 1 :])
    assert eviction.evict(at_any_price(1), NOBODY, soon()).blobs == 0


@pytest.mark.parametrize("needed", [0, -5])
def test_nothing_is_needed(files, eviction, needed):
    """Nothing goes for nothing."""
    put(files, "a", 1)
    assert eviction.evict(at_any_price(needed), NOBODY, soon()).blobs == 0


def test_account_and_generation_follow(files, eviction, generation):
    """What went is given back to the account, and all processes forget what they remember; not if nothing went."""
    for i in range(3):
        put(files, str(i), i + 1)
    before = generation.current()
    eviction.evict(at_any_price(0), NOBODY, soon())
    assert generation.current() == before
    eviction.evict(at_any_price(1), NOBODY, soon())
    assert generation.current() != before
    assert files.quota.figures() == (24 * KIB, 2)


def test_pinned_go_last(files, eviction):
    """A pinned blob goes only when nothing else is left, and it is said how many did."""
    pinned = frozenset({put(files, "old", 1), put(files, "older", 0.5)})
    put(files, "new", 5000)
    evicted = eviction.evict(at_any_price(10 * KIB), pinned, soon())
    assert (evicted.blobs, evicted.pinned) == (1, 0)
    assert held(files) == pinned
    evicted = eviction.evict(at_any_price(1), pinned, soon())
    assert (evicted.blobs, evicted.pinned) == (1, 1)
    assert files.size(Digest.of(b"older".ljust(10 * KIB, b"."))) is None


def test_pinned_since_found(files, eviction):
    """What has been pinned since the last walk stays, and what is no longer pinned goes in its turn."""
    a, b, c = (put(files, name, used) for name, used in (("a", 1), ("b", 2), ("c", 3)))
    eviction.evict(at_any_price(1), frozenset({b}), soon())
    assert held(files) == {b, c}
    eviction.evict(at_any_price(1), frozenset({c}), soon())
    assert held(files) == {c}
    assert a not in held(files)


def test_touched_since_found_stays(files, eviction):
    """Who was used after the walk goes in the order of that use."""
    a, b, c = (put(files, name, used) for name, used in (("a", 1), ("b", 2), ("c", 3)))
    eviction.evict(at_any_price(1), NOBODY, soon())
    files.touch(b, 50.0)
    eviction.evict(at_any_price(1), NOBODY, soon())
    assert held(files) == {b}
    assert (a in held(files), c in held(files)) == (False, False)


def test_one_walk_serves_many_rounds(files, eviction, walks):
    """A store is not walked over again for each round, however little each takes, pinned blobs or not."""
    for i in range(20):
        put(files, str(i), i + 1)
    pinned = frozenset({put(files, "pinned", 0.5)})
    for _ in range(20):
        assert eviction.evict(at_any_price(1), pinned, soon()) == Evicted(1, 10 * KIB, 0)
    assert len(walks) == 1
    assert held(files) == pinned


def test_readers_finish(files, eviction):
    """Who has a blob open reads it to its end after it has gone."""
    digest = put(files, "read", 1)
    blob = files.open(digest)
    assert eviction.evict(at_any_price(1), NOBODY, soon()).blobs == 1
    assert Digest.of(blob.file.read()) == digest
    blob.close()


def test_deadline(files, eviction):
    """After its time it stops, with what it has done."""
    put(files, "a", 1)
    assert eviction.evict(at_any_price(1), NOBODY, time.monotonic() - 1).blobs == 0
    assert len(held(files)) == 1


def test_one_at_a_time(layout, files, eviction):
    """While another process evicts, this one waits until its time is over, and takes nothing on top."""
    put(files, "a", 1)
    descriptor = os.open(layout.eviction_lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert eviction.evict(at_any_price(1), NOBODY, time.monotonic() + 0.1).blobs == 0
    finally:
        os.close(descriptor)
    assert eviction.evict(at_any_price(1), NOBODY, soon()).blobs == 1


EVICTOR = """
import sys, time
from mirror.core.eviction import Plan
from mirror.storage.blobs import BlobFiles
from mirror.maintenance.eviction import Eviction
from mirror.storage.generation import Generation
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
layout = Layout(sys.argv[1])
eviction = Eviction(layout, BlobFiles(layout, SpaceQuota(layout, 0, 0)), Generation(f"{layout.root}/generation"))
count = size = 0
for _ in range(20):
    evicted = eviction.evict(Plan(1), frozenset(), time.monotonic() + 30)
    count, size = count + evicted.blobs, size + evicted.size
print(count, size)
"""


def test_two_processes(layout, files):
    """Two processes that evict at once take each blob once, the oldest ones, and the account is right."""
    blobs = [put(files, str(i), i + 1) for i in range(60)]
    evictors = [
        subprocess.Popen([sys.executable, "-c", EVICTOR, layout.root], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    out = [evictor.communicate(timeout=LIMIT)[0].split() for evictor in evictors]
    assert [int(count) for count, _ in out] == [20, 20]
    assert held(files) == set(blobs[40:])
    assert files.quota.figures() == (20 * 12 * KIB, 20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20_000), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 100_000),
)
def test_any_store(blobs, needed):
    """What is left is younger than what went, smaller ones go first among equals, and without the last there was not enough."""
    with tempfile.TemporaryDirectory() as directory:
        check_any_store(directory, blobs, needed)


def check_any_store(directory, blobs, needed):
    layout = Layout(directory)
    layout.prepare()
    files, generation = BlobFiles(layout, SpaceQuota(layout, 0, 0)), Generation(f"{layout.root}/generation")
    known = {}
    for i, (used, size, is_pinned) in enumerate(blobs):
        known[put(files, f"{i:02}", used, max(2, size))] = (is_pinned, used, max(2, size))
    pinned = frozenset(digest for digest, (is_pinned, _, _) in known.items() if is_pinned)
    before = files.quota.used()
    evicted = Eviction(layout, files, generation).evict(at_any_price(needed), pinned, soon())
    generation.close()
    left = held(files)
    gone = sorted(known[digest] for digest in known if digest not in left)
    assert evicted.blobs == len(gone)
    assert evicted.pinned == sum(is_pinned for is_pinned, _, _ in gone)
    assert all(went <= known[digest] for digest in left for went in gone)
    freed = before - files.quota.used()
    assert freed >= needed or not left
    if gone:
        assert freed - -(-gone[-1][2] // 4096) * 4096 < needed
