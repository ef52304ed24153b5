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
    assert first.due(100, lambda _: False) == []
    monkeypatch.setattr("mirror.objects.owed.time.time", lambda: now + 10)
    rows = second.due(100, lambda _: False)
    assert {blob_of(row) for row in rows} == {digest(number) for number in range(10)}
    assert second.count() == 10
    second.delete(rows[0])
    assert first.due(3, lambda row: row == rows[1]) == rows[2:5]
    assert first.count() == 9


def test_clock_that_was_set_back(tmp_path, monkeypatch):
    """A row from the future is due."""
    owed = OwedUploads(str(tmp_path))
    owed.add_blob(digest(1))
    now = time.time()
    monkeypatch.setattr("mirror.objects.owed.time.time", lambda: now - 3600)
    assert len(owed.due(1, lambda _: False)) == 1


def test_foreign_rows(tmp_path):
    """A row that this version does not know names no blob."""
    assert blob_of("blob|sha256:../../x") is None
    assert blob_of("other|" + str(digest(1))) is None
