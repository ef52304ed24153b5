"""The accounts of registries: what their files take, whatever stores, removes, counts or dies, in several processes."""

import contextlib
import os
import struct
import subprocess
import tempfile
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mirror.core.digest import Digest
from mirror.core.eviction import Goal
from mirror.download.partial import Partial
from mirror.errors import StorageError
from mirror.maintenance import store_scan
from mirror.storage.account import Account, AccountFile, on_disk
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of
from mirror.storage.space_quota import Fit, SpaceQuota
from tests.support.names import KIB
from tests.support.new_stores import ScanInThread

ONE, TWO = "one.example", "two.example"
LIMIT = 64 * KIB


@pytest.fixture(autouse=True)
def scans(monkeypatch):
    """Scans without a process for each."""
    in_thread = SimpleNamespace(**{**vars(subprocess), "Popen": ScanInThread})
    monkeypatch.setattr("mirror.maintenance.store_scan.subprocess", in_thread)


def limited(layout, limit=LIMIT):
    quota = SpaceQuota(layout, 0, 0)
    quota.limits = {ONE: limit, TWO: 0}
    return quota


def test_limit(layout):
    """A registry takes no more than its limit, and another one's space does not count for it."""
    quota = limited(layout)
    assert quota.reserve(LIMIT + 1, ONE) is Fit.NEVER
    assert quota.reserve(LIMIT + 1, TWO) is Fit.RESERVED
    assert quota.reserve(LIMIT, ONE) is Fit.RESERVED
    assert (quota.fits(1, ONE), quota.fits(1, TWO), quota.fits(1)) == (Fit.NO_SPACE, Fit.RESERVED, Fit.RESERVED)
    assert quota.shortage_for(1, ONE).size == Goal(4096, 4096)
    assert not quota.shortage(1.0, ONE)
    quota.release(LIMIT, owner=ONE)
    assert quota.fits(LIMIT, ONE) is Fit.RESERVED


@pytest.mark.parametrize(("size", "said"), [(LIMIT + 1, "larger than registries.one.example.max_size"), (LIMIT, "no room")])
def test_claim_names_the_key(layout, size, said):
    """What never fits into a registry is told with the key of its limit."""
    quota = limited(layout)
    quota.claim(4096, "a blob", ONE)
    with pytest.raises(StorageError, match=said):
        quota.claim(size, "a blob", ONE)


def test_without_attributes(layout, monkeypatch):
    """A file system without extended attributes stores as before; the limit has no effect, and nothing is counted wrongly."""

    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refused)
    monkeypatch.setattr(os, "getxattr", refused)
    quota = limited(layout, 4096)
    files, data = BlobFiles(layout, quota), b"x" * 9000
    files.put(Digest.of(data), data, ONE)
    partial = Partial(layout, quota, Digest.of(b""))
    partial.begin(9000, ONE)
    assert (quota.keeps_owners, quota.mark().registries, quota.used()) == (False, {}, 2 * on_disk(9000))
    partial.discard()
    partial.close()
    assert files.delete(Digest.of(data)) == 9000
    assert quota.mark().used == 0


def test_account_of_an_earlier_version(layout):
    """The file of an earlier version is read, and what it does not know is counted; its own changes are noticed."""
    with open(layout.account, "wb") as file:
        file.write(struct.pack("=QQQQ", 8192, 2, 8192, 0))
    account = AccountFile(layout.account)
    assert account.read() == Account(8192, 2, 8192, 0)
    with account.change() as change:
        change.write(change.account.take(4096, ONE))
    assert account.read().of(ONE).used == 4096
    # An earlier version changes its part of the file only.
    numbers = struct.pack("=QQQQ", 4096, 1, 8192, 4096)
    with open(layout.account, "r+b") as file:
        file.write(numbers + struct.pack("=I", zlib.crc32(numbers)))
    assert account.read() == Account(4096, 1, 8192, 4096)


class Registries(RuleBasedStateMachine):
    """Two processes store, fetch, discard and remove files of two registries; some die in the middle; a count repairs that."""

    @initialize()
    def start(self):
        self.directory = tempfile.TemporaryDirectory()
        self.layout = Layout(self.directory.name)
        self.layout.prepare()
        self.processes = [limited(self.layout), limited(self.layout)]
        self.partials = {}
        self.blobs = {}
        self.number = 0
        self.right = True

    def of(self, data):
        process = data.draw(st.sampled_from(self.processes))
        return process, BlobFiles(self.layout, process)

    def new(self, size):
        self.number += 1
        return b"%d" % self.number + bytes(size)

    def model(self, owner=None):
        """What the files take, by the model."""
        sizes = [*self.blobs.values(), *((size, registry) for size, registry, _ in self.partials.values())]
        return sum(on_disk(size) for size, registry in sizes if owner in (None, registry))

    @rule(data=st.data(), size=st.integers(0, 40_000), owner=st.sampled_from([ONE, TWO, None]))
    def put(self, data, size, owner):
        _, files = self.of(data)
        content = self.new(size)
        fits = owner != ONE or self.model(ONE) + on_disk(len(content)) <= LIMIT
        try:
            files.put(Digest.of(content), content, owner)
        except StorageError:
            assert not fits or not self.right
        else:
            assert fits or not self.right
            self.blobs[Digest.of(content)] = len(content), owner

    @rule(data=st.data(), size=st.integers(1, 40_000), owner=st.sampled_from([ONE, TWO]))
    def begin(self, data, size, owner):
        process, _ = self.of(data)
        content = self.new(size)
        partial = Partial(self.layout, process, Digest.of(content))
        try:
            partial.begin(len(content), owner)
        except StorageError:
            partial.abandon()
            assert owner == ONE
        else:
            self.partials[Digest.of(content)] = len(content), owner, (partial, content)

    @rule(data=st.data())
    def commit(self, data):
        if self.partials:
            digest = data.draw(st.sampled_from(sorted(self.partials, key=str)))
            size, owner, (partial, content) = self.partials.pop(digest)
            os.pwrite(partial.descriptor, content[:size], 0)
            self.of(data)[1].commit(partial.path, partial.descriptor, digest)
            partial.remove_map()
            partial.close()
            self.blobs[digest] = size, owner

    @rule(data=st.data())
    def discard(self, data):
        if self.partials:
            _, _, (partial, _) = self.partials.pop(data.draw(st.sampled_from(sorted(self.partials, key=str))))
            partial.discard()
            partial.close()

    @rule(data=st.data())
    def begin_again(self, data):
        """Another size, as upstream states it now, and perhaps through another registry."""
        if self.partials:
            digest = data.draw(st.sampled_from(sorted(self.partials, key=str)))
            _, _, (partial, content) = self.partials[digest]
            size, owner = data.draw(st.integers(1, 9000)), data.draw(st.sampled_from([TWO, ONE]))
            try:
                partial.begin(size, owner)
            except StorageError:
                del self.partials[digest]
                partial.abandon()
            else:
                self.partials[digest] = size, owner, (partial, content)

    @rule(data=st.data())
    def delete(self, data):
        if self.blobs:
            digest = data.draw(st.sampled_from(sorted(self.blobs, key=str)))
            size, _ = self.blobs.pop(digest)
            assert self.of(data)[1].delete(digest) == size

    @rule(data=st.data(), owner=st.sampled_from([ONE, TWO]))
    def die_after_the_file(self, data, owner):
        """SIGKILL between a change on disk and the change of the account."""
        _, files = self.of(data)
        content = self.new(5000)

        class Killed(BaseException):
            pass

        def killed(self, account):
            raise Killed

        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr("mirror.storage.account.Change.write", killed)
            if data.draw(st.booleans()) and self.blobs:
                digest = data.draw(st.sampled_from(sorted(self.blobs, key=str)))
                del self.blobs[digest]
                files.delete(digest)
            else:
                partial = Partial(self.layout, files.quota, Digest.of(content))
                try:
                    partial.begin(len(content), owner)
                except Killed:
                    self.partials[Digest.of(content)] = len(content), owner, (partial, content)
                except StorageError:
                    partial.abandon()
        self.right = False

    @rule(data=st.data())
    def restart(self, data):
        self.processes[data.draw(st.integers(0, 1))] = limited(self.layout)

    @rule(data=st.data())
    def count(self, data):
        process, _ = self.of(data)
        mark = process.mark()
        found = store_scan.take(self.layout, lambda: False, registry="*")
        counted = Account(found.taken, found.blobs, 0, 0, {name: Account(*row) for name, row in found.registries.items() if name})
        for digest, (size, _, _) in self.partials.items():
            counted = counted.take(on_disk(size), owner_of(self.layout.partial(digest)))
        assert process.correct(mark, counted)
        self.right = True

    @invariant()
    def account_is_right(self):
        if getattr(self, "right", False):
            account = self.processes[0].mark()
            assert account.used == self.model()
            for owner in (ONE, TWO):
                assert account.of(owner).used == self.model(owner)
                assert account.of(owner).blobs == sum(registry == owner for _, registry in self.blobs.values())
            assert account.of(ONE).used <= LIMIT

    def teardown(self):
        for _, _, (partial, _) in getattr(self, "partials", {}).values():
            partial.close()
        if hasattr(self, "directory"):
            self.directory.cleanup()


Registries.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestRegistries = Registries.TestCase
