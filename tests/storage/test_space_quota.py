"""The account of a store: never more than the cap, never less free than the floor, whoever reserves and whatever crashes."""

import errno
import fcntl
import os
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mirror.core.digest import Digest
from mirror.core.eviction import Goal
from mirror.download.partial import Partial
from mirror.errors import StorageError
from mirror.storage import space_quota
from mirror.storage.account import Account, on_disk
from mirror.storage.layout import Layout
from mirror.storage.space_quota import Fit, SpaceQuota
from tests.support.names import KIB, MIB
from tests.support.waiting import LIMIT


@given(st.integers(0, 1 << 60))
def test_whole_blocks(size):
    """A file counts with the blocks that it takes, not less than it has bytes and by less than a block more."""
    assert on_disk(size) % 4096 == 0
    assert 0 <= on_disk(size) - size < 4096


def test_cap(layout):
    """What is larger than the whole cap never fits; what finds no room beside the rest does not fit now."""
    room = SpaceQuota(layout, 64 * KIB, 0)
    assert room.reserve(64 * KIB + 1) is Fit.NEVER
    assert room.reserve(40 * KIB) is Fit.RESERVED
    assert room.reserve(25 * KIB) is Fit.NO_SPACE
    assert room.fits(24 * KIB) is Fit.RESERVED
    assert room.used() == 40 * KIB
    assert room.reserve(24 * KIB) is Fit.RESERVED
    assert room.reserve(1) is Fit.NO_SPACE
    assert room.reserve(0) is Fit.RESERVED
    room.release(40 * KIB)
    assert room.reserve(1) is Fit.RESERVED
    assert room.used() == 28 * KIB


def test_no_cap(layout):
    """With a cap of 0 only the disk is the limit."""
    room = SpaceQuota(layout, 0, 0)
    assert room.reserve(5 * MIB) is Fit.RESERVED
    assert room.fits(1 << 60) is Fit.NO_SPACE
    assert not room.shortage(0.5)


@pytest.mark.parametrize(("size", "reason"), [(65 * KIB, "too_large"), (40 * KIB, "full")])
def test_claim_says_why_not(layout, size, reason):
    """The two noes are told apart by their reason, and neither takes room."""
    room = SpaceQuota(layout, 64 * KIB, 0)
    room.claim(32 * KIB, "a blob")
    with pytest.raises(StorageError, match="a blob") as raised:
        room.claim(size, "a blob")
    assert raised.value.reason == reason
    assert room.used() == 32 * KIB


def test_floor(small_disk):
    """The free space that is to remain is not touched."""
    layout = Layout(str(small_disk.path / "store"))
    layout.prepare()
    room = SpaceQuota(layout, 0, 128 * KIB)
    room.reserve(0)
    left = room.free() - 128 * KIB
    assert room.fits(left) is Fit.RESERVED
    assert room.fits(left + 1) is Fit.NO_SPACE
    assert not room.shortage(1.0)
    (small_disk.path / "somebody else's").write_bytes(bytes(left + 4096))
    assert room.shortage(1.0).free == Goal(4096, 4096)
    assert room.fits(0) is Fit.NO_SPACE


def test_floor_counts_what_is_promised(small_disk):
    """Bytes that a blob in the making may still write are not free for another."""
    layout = Layout(str(small_disk.path / "store"))
    layout.prepare()
    room = SpaceQuota(layout, 0, 0)
    one, other = (Partial(layout, room, Digest.of(name)) for name in (b"one", b"other"))
    free = room.free()
    one.begin(free // 2)
    with pytest.raises(StorageError) as raised:
        other.begin(free // 2 + 8 * KIB)
    assert raised.value.reason == "full"
    one.write(0, bytes(free // 2))
    other.begin(free // 4)
    other.write(0, bytes(free // 4))
    one.close()
    other.close()


def test_partial_that_cannot_be_made_takes_no_room(layout, monkeypatch):
    """SpaceQuota that was taken for a file that the file system then refuses is given back."""

    def refused(descriptor, size):
        if size:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    room = SpaceQuota(layout, 10 * MIB, 0)
    partial = Partial(layout, room, Digest.of(b""))
    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", refused)
        with pytest.raises(StorageError):
            partial.begin(MIB)
    assert room.used() == 0
    partial.begin(MIB)
    assert room.used() == MIB
    partial.discard()
    assert room.used() == 0
    partial.close()


def test_account_is_kept_over_a_restart(layout):
    """What was taken is taken for the next process."""
    SpaceQuota(layout, 64 * KIB, 0).claim(60 * KIB, "")
    assert SpaceQuota(layout, 64 * KIB, 0).fits(5 * KIB) is Fit.NO_SPACE


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 15])
def test_damaged_account_is_empty(layout, content):
    """An account that was lost or cut counts from nothing until the files are counted."""
    with open(layout.account, "wb") as file:
        file.write(content)
    room = SpaceQuota(layout, 64 * KIB, 0)
    assert room.figures() == (0, 0)
    room.claim(8 * KIB, "")
    mark = room.mark()
    assert room.correct(mark, Account(32 * KIB, 3))
    assert room.figures() == (32 * KIB, 3)


def test_release_of_more_than_there_is(layout):
    """An account that was too low does not go below nothing."""
    room = SpaceQuota(layout, 64 * KIB, 0)
    room.release(8 * KIB, blobs=2)
    assert room.figures() == (0, 0)


def test_blobs_are_counted(layout):
    """Held blobs count from their commit until they are gone."""
    room = SpaceQuota(layout, 0, 0)
    room.claim(10, "")
    assert room.figures() == (4096, 0)
    room.commit(lambda: None)
    assert room.figures() == (4096, 1)
    room.claim(5000, "")
    room.commit(lambda: (10, None))
    assert room.figures() == (8192, 1)
    room.release(5000, blobs=1)
    assert room.figures() == (0, 0)


def test_read_only_store(small_disk):
    """On a file system that has become read-only nothing can be reserved, and the reason says so."""
    layout = Layout(str(small_disk.path / "store"))
    layout.prepare()
    room = SpaceQuota(layout, 64 * KIB, 0)
    room.claim(4096, "")
    small_disk.read_only()
    with pytest.raises(StorageError) as raised:
        room.claim(4096, "")
    assert raised.value.reason == "read_only"
    room.release(4096)


class Counting(RuleBasedStateMachine):
    """Files come and go, before, behind and while they are counted."""

    @initialize(wrong=st.sampled_from([0, -3, 5]))
    def start(self, wrong):
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.room = SpaceQuota(Layout(self.directory.name), 0, 0)
        self.files = {}
        self.names = 0
        self.counting = None
        self.put(4)
        self.put(4)
        # What a crash leaves: the account says more or less than there is.
        if wrong > 0:
            self.room.reserve(wrong * 4096)
        else:
            self.room.release(-wrong * 4096)
        self.right = wrong == 0

    @rule(blocks=st.integers(1, 9))
    def put(self, blocks):
        self.room.reserve(blocks * 4096)
        self.files[self.names] = blocks
        self.names += 1

    @rule(data=st.data())
    def remove(self, data):
        if self.files:
            self.room.release(self.files.pop(data.draw(st.sampled_from(sorted(self.files)))) * 4096)

    @rule()
    def begin_count(self):
        self.counting, self.mark, self.counted = sorted(self.files), self.room.mark(), 0
        self.changed_from = self.names, len(self.files)

    @rule()
    def count_one(self):
        if self.counting:
            self.counted += self.files.get(self.counting.pop(), 0)

    @rule()
    def end_count(self):
        if self.counting is None:
            return
        while self.counting:
            self.count_one()
        quiet = self.changed_from == (self.names, len(self.files))
        certain = self.room.correct(self.mark, Account(self.counted * 4096, len(self.files)))
        self.counting = None
        if certain and quiet:
            self.right = True
        assert certain or not quiet

    @invariant()
    def right_stays_right(self):
        if self.right:
            assert self.room.used() == sum(self.files.values()) * 4096

    def teardown(self):
        if hasattr(self, "directory"):
            self.directory.cleanup()


Counting.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestCounting = Counting.TestCase


WORKER = """
import random, sys
from mirror.storage import space_quota
from mirror.storage.layout import Layout
from mirror.storage.space_quota import Fit, SpaceQuota
room = SpaceQuota(Layout(sys.argv[1]), int(sys.argv[2]), 0)
random.seed(sys.argv[3])
mine, noes = [], 0
for _ in range(400):
    size = random.randrange(1, 30_000)
    if room.reserve(size) is Fit.RESERVED:
        mine.append(size)
    else:
        noes += 1
    assert room.used() <= int(sys.argv[2])
    if mine and random.random() < 0.4:
        room.release(mine.pop(random.randrange(len(mine))))
print(sum(-(-size // 4096) * 4096 for size in mine), noes)
"""


def test_processes_share_one_account(layout):
    """Several processes together never get more than the cap, and the account is what they have."""
    cap = 500_000
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, layout.root, str(cap), name], stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    taken = noes = 0
    for worker in workers:
        out, _ = worker.communicate(timeout=LIMIT)
        assert worker.returncode == 0
        taken, noes = taken + int(out.split()[0]), noes + int(out.split()[1])
    assert noes > 0
    assert 0 < taken <= cap
    assert SpaceQuota(layout, cap, 0).used() == taken


PUTTER = """
import sys
import threading
from mirror.core.digest import Digest
from mirror.storage.blobs import BlobFiles
from mirror.storage import space_quota
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
layout = Layout(sys.argv[1])
files = BlobFiles(layout, SpaceQuota(layout, 0, 0))
sys.stdin.read(1)
for i in range(60):
    files.put(Digest.of(b"%d" % i), b"%d" % i)
"""


def test_two_processes_put_the_same(layout, files):
    """What two processes store at the same moment is held once, and counts once."""
    putters = [subprocess.Popen([sys.executable, "-c", PUTTER, layout.root], stdin=subprocess.PIPE) for _ in range(3)]
    for putter in putters:
        putter.stdin.write(b"x")
        putter.stdin.close()
    for putter in putters:
        putter.wait(LIMIT)
        assert putter.returncode == 0
    assert files.quota.figures() == (60 * 4096, 60)


def test_lock_is_not_waited_for_without_end(layout, monkeypatch):
    """Of an account that somebody holds, and hangs, the numbers can be read at once; that nothing can be taken is said soon."""
    monkeypatch.setattr("mirror.storage.account._LOCK_TIMEOUT_S", 0.1)
    room = SpaceQuota(layout, 64 * KIB, 0)
    room.claim(4096, "")
    descriptor = os.open(layout.account, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    found = []

    def work():
        found.append(room.figures())
        try:
            room.claim(4096, "")
        except StorageError as error:
            found.append(error.reason)
        room.release(4096)

    try:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(LIMIT)
        assert found == [(4096, 0), "busy"]
        assert not thread.is_alive()
    finally:
        os.close(descriptor)
        thread.join(LIMIT)
    assert room.used() == 4096


@pytest.mark.parametrize("offset", range(36))
def test_any_byte_of_the_account(layout, offset):
    """An account of which a byte is wrong counts from nothing until the files are counted; it never says that all is full."""
    room = SpaceQuota(layout, 64 * KIB, 0)
    room.claim(8 * KIB, "")
    with open(layout.account, "r+b") as file:
        file.seek(offset)
        file.write(b"\xfe")
    assert room.figures() == (0, 0)
    room.claim(60 * KIB, "")
    assert room.figures() == (60 * KIB, 0)


def test_account_of_an_earlier_version(layout):
    """An account without a checksum, as earlier versions have written it, counts."""
    with open(layout.account, "wb") as file:
        file.write(struct.pack("=QQQQ", 8 * KIB, 1, 8 * KIB, 0))
    room = SpaceQuota(layout, 64 * KIB, 0)
    assert room.figures() == (8 * KIB, 1)
    room.claim(4 * KIB, "")
    assert room.figures() == (12 * KIB, 1)


def test_index_and_maps_count(layout):
    """What lies in the store beside the blobs takes of the room that blobs may have, also what a damaged index left behind."""
    room = SpaceQuota(layout, 256 * KIB, 0)
    os.makedirs(f"{layout.index}/tags.2")
    for path in (f"{layout.index}/tags.2/cache.db", f"{layout.root}/partial/sha256/{'a' * 64}.map"):
        with open(path, "wb") as file:
            file.write(bytes(64 * KIB))
    assert room.figures() == (128 * KIB, 0)
    assert room.reserve(132 * KIB) is Fit.NO_SPACE
    assert room.shortage_for(132 * KIB).size.needed == 4 * KIB
    assert room.reserve(128 * KIB) is Fit.RESERVED
    assert room.figures() == (256 * KIB, 0)
    assert room.shortage(0.5).size.needed == 0


class Walks:
    """Counts the directories that are walked."""

    def __init__(self, monkeypatch):
        self.count = 0
        self._scandir = os.scandir
        monkeypatch.setattr(os, "scandir", self._walk)

    def _walk(self, path):
        self.count += 1
        return self._scandir(path)


def test_no_walk_far_from_the_limit(layout, monkeypatch):
    """What is reserved before a first byte does not depend on how much else is under way, nor on the size of the index."""
    quota = SpaceQuota(layout, 1 << 40, 0)
    assert quota.reserve(MIB) is Fit.RESERVED
    walks = Walks(monkeypatch)
    assert quota.reserve(MIB) is Fit.RESERVED
    assert walks.count == 0
    # Some seconds later, the index may have grown.
    monkeypatch.setattr(space_quota, "_OVERHEAD_S", -1.0)
    quota.overhead()
    walks.count = 0
    assert quota.reserve(MIB) is Fit.RESERVED
    assert walks.count > 0


def test_exact_near_the_limit(layout):
    """An index that has grown since it was measured counts as soon as it matters."""
    quota = SpaceQuota(layout, 128 * MIB, 0)
    assert quota.reserve(MIB) is Fit.RESERVED
    table = f"{layout.index}/tags"
    os.makedirs(table, exist_ok=True)
    with open(f"{table}/cache.db", "wb") as file:
        file.write(bytes(64 * MIB))
    assert quota.reserve(62 * MIB) is Fit.RESERVED
    assert quota.reserve(2 * MIB) is Fit.NO_SPACE
