"""Which repository may be served what: while the disk takes nothing, and after upstream has taken a grant back."""

import threading

import pytest

from mirror.cache.access_index import AccessIndex
from mirror.config.sections import Storage
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage import unwritten
from mirror.storage.manifests import ManifestRecord
from mirror.storage.store import Store
from tests.support.waiting import LIMIT

APP = Repository.parse("docker.io", "library/app")
DIGEST = Digest.of(b"content")


HELD = ManifestRecord("application/vnd.oci.image.manifest.v1+json", 7)


@pytest.fixture
async def opened(tmp_path):
    """Opens the grants of a process; all share one store."""
    stores = []

    def open_grants():
        stores.append(Store(Storage(path=tmp_path / "store", min_free=0)))
        return AccessIndex(stores[-1].index, stores[-1].generation, stores[-1].threads.note)

    yield open_grants
    for store in stores:
        store.close()


@pytest.fixture
async def access(opened):
    return opened()


@pytest.fixture(params=["own process", "another process"])
async def refused(request, access, opened):
    """A process that learns what upstream refuses: the one that fetches, or another one."""
    return access if request.param == "own process" else opened()


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


async def test_not_granted_again_by_what_began_before(access, refused):
    """What began with a grant repeats its rows once it is stored, and does not bring back what upstream has refused since."""
    access.record_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, ())
    assert await access.wait_written(LIMIT)
    refused.revoke_grant("manifest", APP, DIGEST)
    assert await refused.wait_written(LIMIT)
    access.repeat_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, (), force=True)
    for private in (True, False):
        assert access.find("manifest", APP, DIGEST, private=private) is None
    assert await access.wait_written(LIMIT)
    for private in (True, False):
        for process in (access, refused):
            assert process.find("manifest", APP, DIGEST, private=private) is None


async def test_refused_while_the_rows_are_repeated(access, opened, monkeypatch):
    """Another process learns of the refusal after this one has looked, and before it writes."""
    access.record_grant("manifest", APP, DIGEST, 7)
    assert await access.wait_written(LIMIT)
    hangs, go_on = threading.Event(), threading.Event()

    def write(*_):
        hangs.set()
        assert go_on.wait(LIMIT)

    monkeypatch.setattr(access._index.parts, "put", write)
    access.record_manifest(APP, DIGEST, HELD, ())
    access._unwritten._is_awaited.set()
    assert hangs.wait(LIMIT)
    access.repeat_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, (), force=True)
    other = opened()
    other.revoke_grant("manifest", APP, DIGEST)
    assert await other.wait_written(LIMIT)
    go_on.set()
    assert await access.wait_written(LIMIT)
    for private in (True, False):
        for process in (access, other):
            assert process.find("manifest", APP, DIGEST, private=private) is None


async def test_granted_anew_after_a_refusal(access, refused):
    """A later answer of upstream grants again what it had refused."""
    access.record_grant("manifest", APP, DIGEST, 7)
    assert await access.wait_written(LIMIT)
    refused.revoke_grant("manifest", APP, DIGEST)
    assert await refused.wait_written(LIMIT)
    access.record_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, ())
    access.repeat_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, (), force=True)
    assert await access.wait_written(LIMIT)
    for process in (access, refused):
        assert process.find("manifest", APP, DIGEST, private=True) is not None
        assert process.media_type(APP, DIGEST) == HELD.media_type


async def test_repeated_after_the_rows_were_deleted(access, opened):
    """Maintenance has deleted rows whose content was not stored yet: they are written again."""
    access.record_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, ())
    assert await access.wait_written(LIMIT)
    other = opened()
    other._index.drop_manifests(lambda _: False)
    other._index.grants.drop(lambda _: False)
    access.repeat_grant("manifest", APP, DIGEST, 7)
    access.record_manifest(APP, DIGEST, HELD, (), force=True)
    assert await access.wait_written(LIMIT)
    assert other.find("manifest", APP, DIGEST, private=True) is not None
    assert other.media_type(APP, DIGEST) == HELD.media_type


async def test_maintenance_does_not_forget_a_refusal(access, opened):
    """Nor does a purge of the content between the refusal and the repetition have the grant come back."""
    access.record_grant("manifest", APP, DIGEST, 7)
    assert await access.wait_written(LIMIT)
    other = opened()
    other.revoke_grant("manifest", APP, DIGEST)
    assert await other.wait_written(LIMIT)
    other._index.grants.drop(lambda _: False)
    other._index.release_part("manifest", APP, DIGEST)
    access.repeat_grant("manifest", APP, DIGEST, 7)
    assert await access.wait_written(LIMIT)
    assert access.find("manifest", APP, DIGEST, private=True) is None
