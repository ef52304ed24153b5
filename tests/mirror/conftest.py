"""Fixtures for tests of a whole mirror."""

import itertools
import logging
import subprocess
from types import SimpleNamespace

import pytest
import pytest_asyncio
import structlog

from tests.fakehub import FakeHub
from tests.mirror.buckets import nothing_owed, pull, uploaded
from tests.mirror.holding import Holding
from tests.support.buckets import BucketProxy, BucketServer
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.new_stores import ScanInThread
from tests.support.waiting import eventually

_BUCKETS = itertools.count()
_SCANS = SimpleNamespace(**{**vars(subprocess), "Popen": ScanInThread})


@pytest.fixture(autouse=True)
def scans(monkeypatch):
    """Scans of the store without a process for each; a module about what they find has those of production."""
    monkeypatch.setattr("mirror.maintenance.store_scan.subprocess", _SCANS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_hub():
    """The fake Hub of `shared_mirror`."""
    async with FakeHub() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_mirror(shared_hub, tmp_path_factory):
    """One mirror for all cases of a module that change nothing in it: what is refused, and what only reads.

    A case that uses it runs on the event loop of the module (`SHARED`). It looks neither at what the mirror logs, which leaves
    out what is repeated, nor at what it has counted.
    """
    async with MirrorUnderTest(shared_hub, tmp_path_factory.mktemp("shared") / "store") as under_test:
        yield under_test


@pytest.fixture
def clock(mirror, monkeypatch):
    """The clock of `mirror`, to be moved on instead of waiting."""
    return Clock(mirror, monkeypatch)


@pytest.fixture
def quick_sync(monkeypatch):
    """Jobs of syncing begin at once."""
    monkeypatch.setattr("mirror.sync.scheduler._POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr("mirror.sync.run._HEAD_START_S", 0.1)


@pytest.fixture
def holding(hub, tmp_path, monkeypatch):
    """Starts a mirror with rules for tags, and its clock."""
    return Holding(hub, tmp_path / "store", monkeypatch).start


@pytest.fixture
def impatient(mirror):
    """A `mirror` that waits for upstream's headers for a moment only."""
    mirror.set_limits(connect=0.1, headers=0.2)
    return mirror


@pytest.fixture
def all_in(mirror):
    """Waits until the mirror has so many requests under way, so that none of them comes after the fact."""

    async def wait(count):
        await eventually(lambda: mirror.in_progress >= count)

    return wait


@pytest.fixture
def pulls_left(hub):
    """Has a mirror learn from upstream how many pulls are left."""

    async def learn(mirror, left):
        hub.ratelimit_limit, hub.ratelimit_remaining = 10_000, left
        hub.add_image("library/known", "1")
        assert (await mirror.head("/v2/library/known/manifests/1")).status == 200

    return learn


@pytest.fixture
def log(caplog):
    """The events that the mirror logs, at every level."""
    caplog.set_level(logging.DEBUG)
    # A command that another test has run in this process has set a level.
    wrapper = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    with structlog.testing.capture_logs() as events:
        yield events
    structlog.configure(wrapper_class=wrapper)


@pytest.fixture
def quiet(log, caplog):
    """Fails if anything was logged as an error or with a traceback, by the mirror or by a library."""

    def check():
        assert not [event for event in log if "exc_info" in event or event["log_level"] in ("error", "critical")]
        assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]

    return check


@pytest.fixture
def blobs_only(monkeypatch):
    """Nothing but blobs counts for `storage.max_size`, so that a test can say to the byte what fits into a tiny store."""
    monkeypatch.setattr("mirror.storage.space_quota.SpaceQuota.overhead", lambda self: 0)


@pytest.fixture(scope="session")
def bucket_server():
    """An S3 server."""
    running = BucketServer()
    yield running
    running.close()


@pytest.fixture
def bucket(bucket_server):
    """An empty bucket."""
    return bucket_server.bucket(f"bucket-{next(_BUCKETS)}")


@pytest.fixture
async def proxy(bucket_server):
    """Stands before the S3 server, and can fail."""
    async with BucketProxy(bucket_server) as running:
        yield running


@pytest.fixture
def opened(hub, bucket, proxy, tmp_path, monkeypatch):
    """Makes a mirror with the bucket, which uploads soon; each name is another store."""
    hub.redirect_blobs = False
    monkeypatch.setattr("mirror.objects.uploader._POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr("mirror.objects.owed._MIN_AGE_S", 0.5)
    key_file = tmp_path / "key"
    key_file.write_text("id\nsecret\n")

    def make(name, *, objects=None, **settings):
        section = {"url": f"s3://{bucket.name}/pre/fix", "endpoint": proxy.url, "access_key_file": str(key_file)}
        return MirrorUnderTest(hub, tmp_path / name, objects={**section, **(objects or {})}, **settings)

    return make


@pytest.fixture
async def kept(hub, bucket, opened):
    """An image that is in the bucket, and that upstream still has."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 3 << 20, 1)])
    async with opened("first") as mirror:
        await pull(mirror, image)
        await uploaded(bucket, image)
        await nothing_owed(mirror)
    hub.reset_counters()
    return image
