"""What is owed to the bucket, between processes and restarts."""

import time

from mirror.core.digest import Digest
from mirror.objects.owed import OwedUploads, blob_of
from tests.support.names import sha256


def digest(number):
    return Digest.parse(sha256(bytes([number])))


def test_rows_survive(tmp_path, monkeypatch):
    """Another process finds them, oldest or not, once what they name has had the time to appear."""
    first, second = OwedUploads(str(tmp_path)), OwedUploads(str(tmp_path))
    now = time.time()
    for number in range(10):
        first.add_blob(digest(number))
    assert first.due("blob", 100, lambda _: False) == []
    monkeypatch.setattr("mirror.objects.owed.time.time", lambda: now + 10)
    rows = second.due("blob", 100, lambda _: False)
    assert {blob_of(row) for row in rows} == {digest(number) for number in range(10)}
    assert second.count() == 10
    second.delete(rows[0])
    assert first.due("blob", 3, lambda row: row == rows[1]) == rows[2:5]
    assert first.count() == 9


def test_clock_that_was_set_back(tmp_path, monkeypatch):
    """A row from the future is due."""
    owed = OwedUploads(str(tmp_path))
    owed.add_blob(digest(1))
    now = time.time()
    monkeypatch.setattr("mirror.objects.owed.time.time", lambda: now - 3600)
    assert len(owed.due("blob", 1, lambda _: False)) == 1


def test_foreign_rows(tmp_path):
    """A row that this version does not know names no blob."""
    assert blob_of("blob|sha256:../../x") is None
    assert blob_of("other|" + str(digest(1))) is None


def test_upload_that_another_node_makes_first(tmp_path, monkeypatch):
    """It waits, and is then as due as the others."""
    owed, now = OwedUploads(str(tmp_path)), time.time()
    owed.add_blob(digest(1), 60.0)
    monkeypatch.setattr("mirror.objects.owed.time.time", lambda: now + 30)
    assert owed.due("blob", 1, lambda _: False) == []
    assert owed.is_older(f"blob|{digest(1)}", 20)
    monkeypatch.setattr("mirror.objects.owed.time.time", lambda: now + 62)
    assert len(owed.due("blob", 1, lambda _: False)) == 1


def test_purged(tmp_path):
    """What was purged is no upload."""
    owed, now = OwedUploads(str(tmp_path)), time.time()
    owed.add_purged([digest(1), digest(2)])
    assert owed.count() == 0
    assert owed.purged(now - 60, 10) == []
    assert {found for found, _ in owed.purged(now + 60, 10)} == {digest(1), digest(2)}
    owed.delete_purged([digest(1)])
    assert [found for found, _ in owed.purged(now + 60, 10)] == [digest(2)]
