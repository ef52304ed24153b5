"""Who may write what: locks of the kernel, between partials of one process and between processes."""

import contextlib
import subprocess
import sys

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from tests.download.world import open_partial

DIGEST = Digest.of(b"a blob")


@pytest.fixture
def pair(layout):
    """The same blob in the making, as two workers see it."""
    one = open_partial(layout, DIGEST)
    one.begin(3 * CHUNK)
    two = open_partial(layout, DIGEST)
    two.refresh()
    yield one, two
    one.close()
    two.close()


def test_one_driver(pair, layout):
    """Only one of two partials drives; the other can as soon as the first is closed."""
    one, _ = pair
    with contextlib.closing(open_partial(layout, DIGEST)) as two:
        assert two.try_acquire_driver()
        assert two.try_acquire_driver()
        assert not one.try_acquire_driver()
    assert one.try_acquire_driver()


def test_chunks_are_claimed_one_by_one(pair):
    """A claimed chunk excludes everybody else from it, and from no other chunk."""
    one, two = pair
    with contextlib.closing(one.locks()) as first, contextlib.closing(two.locks()) as second:
        assert one.claim(first, 0)
        assert not two.claim(second, 0)
        assert two.claim(second, 1)
        assert not one.claim(first, 1)
        assert one.claim(first, 2)


def test_holders_within_one_partial_exclude_each_other(pair):
    """Two fillers of the same process are as foreign to each other as two processes."""
    one, _ = pair
    with contextlib.closing(one.locks()) as first:
        with contextlib.closing(one.locks()) as second:
            assert one.claim(first, 0)
            assert not one.claim(second, 0)
            first.release(0, CHUNK)
            assert one.claim(second, 0)
        assert one.claim(first, 0)


def test_driver_lock_and_chunk_locks_are_independent(pair):
    """Whoever drives leaves the chunks to those who fill them."""
    one, two = pair
    assert one.try_acquire_driver()
    with contextlib.closing(two.locks()) as lock:
        assert all(two.claim(lock, index) for index in range(3))


def test_readers_hold_nothing(pair):
    """A reader that comes or goes neither takes nor frees a lock."""
    one, two = pair
    assert one.try_acquire_driver()
    one.reader().close()
    two.reader().close()
    assert not two.try_acquire_driver()


def test_claim_tells_what_everybody_has_written(pair):
    """After a claim it is known how far the chunk is, also by writes of another process."""
    one, two = pair
    one.write(CHUNK, b"x" * 300)
    assert two.map.arrived[1] == 0
    with contextlib.closing(two.locks()) as lock:
        assert two.claim(lock, 1)
    assert two.map.arrived[1] == 300


OTHER = """
import sys
from mirror.core.digest import Digest
from mirror.storage.layout import Layout
from tests.download.world import open_partial
partial = open_partial(Layout(sys.argv[1]), Digest.of(b"a blob"))
partial.refresh()
lock = partial.locks()
print(partial.try_acquire_driver(), partial.claim(lock, 1), partial.claim(lock, 2), flush=True)
partial.write((1 << 20), b"y" * 70)
print("written", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def other_process(layout):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, layout.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


def test_processes_exclude_each_other_until_one_is_killed(pair, layout):
    """Another process's locks hold here; the moment it is killed they are free, and what it wrote is known."""
    one, _ = pair
    with other_process(layout) as process, contextlib.closing(one.locks()) as lock:
        assert process.stdout.readline() == "True True True\n"
        assert process.stdout.readline() == "written\n"
        assert not one.try_acquire_driver()
        assert not one.claim(lock, 1)
        assert one.claim(lock, 0)
        process.kill()
        process.wait(10)
        assert one.try_acquire_driver()
        assert one.claim(lock, 1)
        assert one.map.arrived[1] == 70


def test_locks_held_here_hold_in_another_process(pair, layout):
    """And the other way round."""
    one, _ = pair
    with contextlib.closing(one.locks()) as lock:
        assert one.try_acquire_driver()
        assert one.claim(lock, 2)
        with other_process(layout) as process:
            assert process.stdout.readline() == "False True False\n"
