"""Purges that other nodes are told: what counts for them, and what is deleted in Redis."""

import contextlib
import json
import time
import types

import pytest

from mirror.cluster.events import Event, Events
from mirror.cluster.keys import Keys
from mirror.config.model import Storage
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag
from mirror.maintenance.cluster_purge import ClusterPurge
from mirror.metrics import Metrics
from mirror.storage.store import Store

KEYS = Keys("prod", lambda name: name)
APP, ONE = Repository.parse("docker.io", "library/app"), Tag.parse("1")
HOUR = 3600.0


class Link:
    """Keeps what is called."""

    def __init__(self):
        self.deleted = []

    async def call(self, script, keys, *_):
        if "DEL" in script.text:
            self.deleted += keys


@pytest.fixture
def store(tmp_path):
    """A store with a tag that was pulled an hour ago."""
    with contextlib.closing(Store(Storage(path=tmp_path / "store", max_size=0, min_free=0))) as found:
        pulled = time.time() - HOUR
        found.index.tags.put(APP, ONE, TagRecord(Digest.of(b"x"), "", 1, pulled, pulled, pulled))
        yield found


async def told(store, age, older_than):
    """The tags that are left after an order of an age, and the link."""
    link = Link()
    node = types.SimpleNamespace(events=Events(link, KEYS, "me"), link=link, keys=KEYS, name="me", scopes={"docker.io": ""})
    ClusterPurge(store, Metrics(), node)
    pattern = json.dumps({"registry": "docker.io", "path": "library/*", "tag": None, "digest": None})
    fields = {"pattern": pattern, "older_than": older_than, "soft": "0", "client": "root"}
    await node.events.handlers["purged"](Event("1-0", age, "purged", "other", fields))
    return [tag for _, tag, _ in store.index.tags.matching()], link


async def test_age_counts_from_the_order(store):
    """A node that was away for hours keeps what was pulled after the order."""
    assert (await told(store, age=3 * HOUR, older_than=str(round(HOUR / 2))))[0] == [ONE]
    assert (await told(store, age=0.0, older_than=str(round(HOUR / 2))))[0] == []


async def test_what_the_asked_node_does_not_know(store):
    """Records that only this node has shared go from Redis, too: the next pull would be answered by them."""
    left, link = await told(store, age=0.0, older_than="")
    assert left == []
    assert KEYS.tag(APP, ONE) in link.deleted
