"""Mirrors that trust one key in docker.io."""

import subprocess
from types import SimpleNamespace

import pytest

from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.new_stores import ScanInThread
from tests.trust.signing import Key

_SCANS = SimpleNamespace(**{**vars(subprocess), "Popen": ScanInThread})


@pytest.fixture(autouse=True)
def scans(monkeypatch):
    """Scans of the store without a process for each."""
    monkeypatch.setattr("mirror.maintenance.store_scan.subprocess", _SCANS)


@pytest.fixture(scope="session")
def key():
    """The key that the mirrors trust."""
    return Key.ecdsa()


@pytest.fixture
def trusting(hub, tmp_path, key):
    """Returns a mirror with one rule of `trust`, not started; its store lies in the test's directory."""
    path = key.write(tmp_path)

    def make(registry=(), store="store", settings=(), **rule):
        if "identities" not in rule:
            rule.setdefault("keys", [path])
        upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
        entry = {**upstream, "trust": [{"match": "library/*", **rule}], **dict(registry)}
        return MirrorUnderTest(hub, tmp_path / store, registries={"docker.io": entry}, **dict(settings))

    return make


@pytest.fixture
async def mirror(trusting):
    async with trusting() as running:
        yield running


@pytest.fixture
def clock(mirror, monkeypatch):
    """The clock of `mirror`, to be moved on instead of waiting."""
    return Clock(mirror, monkeypatch)
