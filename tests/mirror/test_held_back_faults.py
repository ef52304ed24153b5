"""Moves that are held back although the index cannot be read, checks race, or many indexes lead to a manifest."""

import itertools
import sqlite3

import pytest

from mirror.cache.answers import ManifestAnswer
from mirror.cache.new_digests import DigestAges
from mirror.core.digest import Digest
from mirror.core.outcome import Outcome
from mirror.storage.database import Database
from mirror.storage.parts import Part
from tests.mirror.exports import Exports
from tests.mirror.holding import COOLDOWN, FROZEN, REFUSING, held_back, moved
from tests.mirror.syncing import named
from tests.support.names import APP, TAG, manifest_path, tag_name


@pytest.fixture
def unreadable(monkeypatch):
    """Has reads of rows fail whose key begins with a word, inside a context."""
    get = Database.get

    def begin(word):
        def fail(self, key, *args, **kwargs):
            if key.startswith(word):
                raise sqlite3.OperationalError("disk I/O error")
            return get(self, key, *args, **kwargs)

        context = monkeypatch.context()
        context.__enter__().setattr(Database, "get", fail)
        return context

    return begin


@pytest.mark.parametrize("rule", [FROZEN, COOLDOWN])
async def test_tag_that_cannot_be_read_is_not_followed(hub, holding, unreadable, rule):
    """It is unavailable, and named as before afterwards."""
    async with holding(rule) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        failing = unreadable("tag|")
        answer = await mirror.get(TAG)
        failing.__exit__(None, None, None)
        assert (answer.status, named(mirror, "1")) == (503, old.digest)
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, new.digest)


async def test_young_digest_whose_sight_cannot_be_read_is_not_served(hub, holding, unreadable):
    async with holding(COOLDOWN) as (mirror, clock):
        image = hub.add_image(APP, "1")
        assert (await mirror.get(manifest_path(image.digest))).sha256 == image.digest
        await mirror.idle()
    async with holding(REFUSING, clock=clock) as (mirror, clock):
        failing = unreadable("seen|")
        answer = await mirror.get(manifest_path(image.digest))
        failing.__exit__(None, None, None)
        assert answer.status == 503
        assert (await mirror.get(manifest_path(image.digest))).status == 403


async def test_decision_about_another_record_is_not_written(hub, holding):
    """A check that knew nothing of the tag leaves what another one has recorded meanwhile."""
    async with holding(FROZEN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        store, digest = mirror.graph.cache.tag_store, Digest.parse(new.digest)
        answer = ManifestAnswer(digest, "application/json", 1, None, Outcome.MISS)
        record = await store.update(*tag_name("1"), answer, expected=None, asked=clock())
        assert (str(record.digest), named(mirror, "1")) == (old.digest, old.digest)
        await store.update(*tag_name("1"), answer, expected=Digest.parse(old.digest), asked=clock())
        assert named(mirror, "1") == new.digest


async def test_search_for_known_indexes_is_bounded(holding, monkeypatch):
    """Whoever pushes indexes that name each other does not keep the mirror busy."""
    async with holding(REFUSING) as (mirror, _):
        index, repository = mirror.store.index, tag_name("1")[0]
        levels = [[Digest.of(f"{level} {number}".encode()) for number in range(20)] for level in range(4)]
        for children, parents in itertools.pairwise(levels):
            for parent in parents:
                index.parts.put(repository, parent, tuple(Part("manifest", child, 1) for child in children))
        looked_at = []
        sight = index.holds.sight
        monkeypatch.setattr(index.holds, "sight", lambda *name: looked_at.append(name) or sight(*name))
        assert not DigestAges(mirror.graph.cache.context).admits(repository, levels[0][0])
        assert len(looked_at) == len(set(looked_at)) == 61


async def test_signatures_are_checked_by_the_general_ttl(hub, holding):
    """The ttl of a rule is for images: what their publishers have signed may come later."""
    async with holding({"match": "*/*", "ttl": "7d"}) as (mirror, clock):
        image = hub.add_image(APP, "1")
        name = f"sha256-{image.digest.removeprefix('sha256:')}.sig"
        hub.add_image(APP, name, layers=[b"one"])
        await mirror.get(manifest_path(name))
        await mirror.get(TAG)
        second = hub.add_image(APP, name, layers=[b"two"])
        hub.add_image(APP, "1", layers=[b"other"])
        clock.advance(61)
        assert (await mirror.get(manifest_path(name))).sha256 == second.digest
        assert (await mirror.get(TAG)).sha256 == image.digest


async def test_bundle_is_without_referrers_that_are_too_young(hub, holding):
    """Clients do not get them either."""
    async with holding() as (mirror, clock):
        image = hub.add_image(APP, "1")
        await Exports(mirror).raw("app:1")
    async with holding(REFUSING, clock=clock) as (mirror, clock):
        clock.advance(61)
        referrer = hub.add_referrer(APP, image.digest, payload=b"young")
        bundle = await Exports(mirror).bundle("app:1")
        assert (list(bundle.images.values()), bundle.attached) == ([image.digest], {})
        assert (await mirror.get(manifest_path(referrer))).status == 403
