"""After the index was lost nobody knows how long a blob was: what upstream has not vouched for is hashed before it is served."""

import asyncio
import shutil
import threading

import pytest

from mirror.cache import blobs
from mirror.core.digest import Digest
from mirror.storage import blobs as files
from tests.fakehub import HeadWithoutLength, Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB
from tests.support.waiting import LIMIT, eventually

BLOB = f"/v2/{APP}/blobs"
SIZE = 300 * KIB


@pytest.fixture
async def added(hub, tmp_path):
    """A blob that is held in a store that has lost its index since; and upstream does not tell its length by HEAD."""
    blob = hub.add_synthetic_blob(APP, SIZE)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        await mirror.get(f"{BLOB}/{blob.digest}")
        await mirror.idle()
    shutil.rmtree(tmp_path / "store" / "index")
    hub.script(Rule(kind="blob", method="HEAD", times=None), HeadWithoutLength())
    return blob


@pytest.fixture
async def mirror(hub, tmp_path, added):
    """A mirror over that store."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        yield mirror


@pytest.fixture
def hashed(monkeypatch):
    """Every hash over a held blob; `may_go_on` has to be set for those to end that are begun while it is not."""
    return Hashing(monkeypatch)


class Hashing:
    def __init__(self, monkeypatch):
        self.begun = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        hasher = Digest.hasher

        def waiting(digest):
            # Not what comes from upstream, nor behind a client that repeats its request.
            if threading.current_thread().name.startswith("write"):
                self.begun.append(digest)
                self.may_go_on.wait(LIMIT)
            return hasher(digest)

        monkeypatch.setattr(Digest, "hasher", waiting)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_cut_blob_is_not_served(mirror, added, method):
    """A blob that was cut short is fetched anew instead of being a complete answer with fewer bytes."""
    with mirror.blob_path(added.digest).open("r+b") as file:
        file.truncate(100)
    answer = await mirror.get(f"{BLOB}/{added.digest}", method)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(SIZE))
    if method == "GET":
        assert answer.sha256 == added.digest


async def test_right_blob_is_hashed_once(mirror, added, hashed):
    """A blob that is right is a hit, and after its first answer it is vouched for, also after a restart."""
    for _ in range(3):
        answer = await mirror.get(f"{BLOB}/{added.digest}")
        assert (answer.cache, answer.sha256) == ("HIT", added.digest)
    assert len(hashed.begun) == 1


async def test_many_at_once_are_one_check(mirror, added, hashed):
    """Clients that ask together wait for one check."""
    hashed.may_go_on.clear()
    asking = [asyncio.create_task(mirror.get(f"{BLOB}/{added.digest}")) for _ in range(8)]
    await eventually(lambda: hashed.begun, "the check")
    await eventually(lambda: mirror.in_progress == 8, "all requests")
    hashed.may_go_on.set()
    answers = await asyncio.gather(*asking)
    assert {(answer.cache, answer.sha256) for answer in answers} == {("HIT", added.digest)}
    assert len(hashed.begun) == 1


@pytest.mark.parametrize(("wanted", "status"), [(None, 200), ((1000, 1999), 206)])
async def test_who_waited_long_enough_gets_it_from_upstream(mirror, added, hashed, monkeypatch, wanted, status):
    """While a check lasts the blob comes from upstream, whole or in part; after it, or with upstream's word, it is a hit."""
    monkeypatch.setattr(blobs, "_CHECK_TIMEOUT_S", 0.1)
    hashed.may_go_on.clear()
    headers = {} if wanted is None else {"Range": f"bytes={wanted[0]}-{wanted[1]}"}
    answer = await mirror.get(f"{BLOB}/{added.digest}", headers=headers)
    assert (answer.status, answer.cache) == (status, "BYPASS")
    hashed.may_go_on.set()
    monkeypatch.setattr(blobs, "_CHECK_TIMEOUT_S", 20)
    whole = await mirror.get(f"{BLOB}/{added.digest}")
    assert (whole.cache, whole.sha256) == ("HIT", added.digest)
    assert answer.body == (whole.body if wanted is None else whole.body[wanted[0] : wanted[1] + 1])
    assert len(hashed.begun) == 1


async def test_upstream_is_down_meanwhile(hub, mirror, added, hashed, monkeypatch):
    """If upstream breaks off as well, the answer is an error, and soon; when the check is done the blob is served."""
    hub.script(Rule(kind="cdn", times=None), Status(500))
    monkeypatch.setattr(blobs, "_CHECK_TIMEOUT_S", 0.1)
    hashed.may_go_on.clear()
    async with asyncio.timeout(LIMIT):
        assert (await mirror.get(f"{BLOB}/{added.digest}")).status == 503
    hashed.may_go_on.set()
    monkeypatch.setattr(blobs, "_CHECK_TIMEOUT_S", 20)
    assert (await mirror.get(f"{BLOB}/{added.digest}")).cache == "HIT"


async def test_stop_in_the_middle_of_a_check(hub, tmp_path, monkeypatch):
    """A mirror that stops does not hash a large blob to its end first."""
    blob = hub.add_synthetic_blob(APP, 2 * MIB)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        await mirror.get(f"{BLOB}/{blob.digest}")
        await mirror.idle()
    shutil.rmtree(tmp_path / "store" / "index")
    hub.script(Rule(kind="blob", method="HEAD", times=None), HeadWithoutLength())
    monkeypatch.setattr(files, "_PIECE_BYTES", 1)
    async with asyncio.timeout(LIMIT), MirrorUnderTest(hub, tmp_path / "store") as mirror:
        monkeypatch.setattr(blobs, "_CHECK_TIMEOUT_S", 0.1)
        assert (await mirror.get(f"{BLOB}/{blob.digest}")).cache == "BYPASS"
    assert mirror.holds(blob.digest)
