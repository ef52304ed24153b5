"""What the workers of a mirror know of repeated pulls: shared, bounded, and forgotten soon."""

import os

import pytest

from mirror.core.digest import Digest
from mirror.maintenance import repeats
from mirror.maintenance.repeats import Repeats

DIGEST = Digest.of(b"a blob")
CLIENT = "192.0.2.1"


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def table(now):
    return Repeats(lambda: now[0])


def test_same_client_same_blob_soon(table, now):
    """A repeat is the same blob for the same client within a minute."""
    assert not table.is_repeated(DIGEST, CLIENT)
    table.served(DIGEST, CLIENT)
    assert table.is_repeated(DIGEST, CLIENT)
    assert not table.is_repeated(DIGEST, "192.0.2.2")
    assert not table.is_repeated(Digest.of(b"another"), CLIENT)
    now[0] += 60.0
    assert not table.is_repeated(DIGEST, CLIENT)


def test_one_check_an_hour(table, now):
    """One caller gets to check a blob, and the next one after an hour."""
    assert [table.claim_check(DIGEST) for _ in range(3)] == [True, False, False]
    now[0] += 3599.0
    assert not table.claim_check(DIGEST)
    now[0] += 1.0
    assert table.claim_check(DIGEST)


def test_many_clients_take_no_more_memory(table, now):
    """However many clients and blobs there are, the last ones are known, and the table is as large as it was."""
    size = len(table._memory)
    for number in range(3 * repeats._SLOTS):
        table.served(DIGEST, str(number))
        table.claim_check(Digest.of(str(number).encode()))
    assert table.is_repeated(DIGEST, str(3 * repeats._SLOTS - 1))
    assert len(table._memory) == size


def test_workers_share_it(table):
    """A client that comes back to another worker is known there, and only one of them checks the blob."""
    pid = os.fork()
    if not pid:
        table.served(DIGEST, CLIENT)
        os._exit(0 if table.claim_check(DIGEST) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert table.is_repeated(DIGEST, CLIENT)
    assert not table.claim_check(DIGEST)
