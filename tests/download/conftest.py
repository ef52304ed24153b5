"""Fixtures for tests of the engine."""

import errno
import os

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from tests.download.world import World, open_partial
from tests.support.files import opened_under
from tests.support.stores import layout

__all__ = ["layout"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr("mirror.download.fetcher.backoff", lambda *_, **__: 0.0)


@pytest.fixture
def begun(layout):
    """A partial of two chunks and a half, of which the first 100 bytes have arrived."""
    partial = open_partial(layout, Digest.of(b"a blob"))
    partial.begin(2 * CHUNK + CHUNK // 2)
    partial.write(0, b"x" * 100)
    yield partial
    partial.close()


@pytest.fixture
async def world(tmp_path):
    """A store, which has to be left without an open file."""
    world = World(tmp_path / "store")
    yield world
    await world.close()
    world.executor.shutdown()
    assert opened_under(world.layout.root) == []


class FullDisk:
    """Refuses bytes of partial blobs from a position on."""

    def __init__(self):
        self.room = None
        self.code = errno.ENOSPC
        self._write = os.pwrite

    def pwrite(self, descriptor, data, position):
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.room is not None and "/partial/" in target and not target.endswith(".map") and position + len(data) > self.room:
            raise OSError(self.code, os.strerror(self.code))
        return self._write(descriptor, data, position)


@pytest.fixture
def disk(monkeypatch):
    """The disk; it is full behind `room` bytes of a blob, if that is set."""
    disk = FullDisk()
    monkeypatch.setattr(os, "pwrite", disk.pwrite)
    return disk
