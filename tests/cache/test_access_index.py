"""Which repository may be served what, while the disk takes nothing."""

import threading

import pytest

from mirror.cache.access_index import AccessIndex
from mirror.config.sections import Storage
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage import unwritten
from mirror.storage.store import Store
from tests.support.waiting import LIMIT

APP = Repository.parse("docker.io", "library/app")
DIGEST = Digest.of(b"content")


@pytest.fixture
async def access(tmp_path):
    store = Store(Storage(path=tmp_path / "store", min_free=0))
    yield AccessIndex(store.index, store.generation, store.threads.note)
    store.close()


async def test_revoked_while_too_much_waits(access, monkeypatch):
    """A grant that upstream has taken back is not served from the index because other facts wait for the disk."""
    access.record_grant("blob", APP, DIGEST, 7)
    assert await access.wait_written(LIMIT)
    monkeypatch.setattr(unwritten, "_MAX_WAITING", 1)
    hangs, go_on = threading.Event(), threading.Event()

    def write(*_):
        hangs.set()
        assert go_on.wait(LIMIT)

    monkeypatch.setattr(type(access._index.grants), "put", write)
    access.record_published("blob", "ghcr.io", DIGEST, 7)
    access.revoke_grant("blob", APP, DIGEST)
    try:
        assert access.find("blob", APP, DIGEST, private=True) is None
    finally:
        go_on.set()
