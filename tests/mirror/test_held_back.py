"""Moves of tags that are held back: clients keep the old image, and nobody but the operator notices."""

import asyncio
import json
import time

import pytest

from mirror.core.digest import Digest
from tests.fakehub import HeadWithoutDigest, Rule, Status
from tests.mirror.holding import COOLDOWN, FROZEN, REFUSING, Holding, epoch, held_back, moved, registries
from tests.mirror.syncing import Orders, named
from tests.support.names import ABSENT, APP, DAY, TAG, manifest_path, tag_name
from tests.support.receiver import Receiver

pytestmark = pytest.mark.usefixtures("quick_sync")


# ---- cool-down


async def test_clients_keep_the_old_image_until_the_new_one_has_cooled_down(hub, holding):
    """By GET and HEAD, from the check and from memory; then the tag follows."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        answer = await mirror.get(TAG)
        assert (answer.sha256, answer.cache) == (old.digest, "REVALIDATED")
        assert held_back(answer)[0] == new.digest
        assert abs(clock() + 3 * DAY - epoch(held_back(answer)[1])) < 600
        hit, head = await mirror.get(TAG), await mirror.head(TAG)
        assert (hit.cache, head.cache) == ("HIT", "HIT")
        assert held_back(hit) == held_back(head) == held_back(answer)
        assert hit.sha256 == old.digest == head.headers["Docker-Content-Digest"]
        assert not mirror.holds(new.digest)
        clock.advance(3 * DAY - 3600)
        assert (await mirror.get(TAG)).sha256 == old.digest
        clock.advance(3601)
        followed = await mirror.get(TAG)
        assert (followed.sha256, held_back(followed)) == (new.digest, None)


async def test_tag_follows_when_the_cooldown_ends_though_its_ttl_is_longer(hub, holding):
    async with holding({**COOLDOWN, "ttl": "10d"}) as (mirror, clock):
        hub.add_image(APP, "1", layers=[b"old"])
        await mirror.get(TAG)
        new = hub.add_image(APP, "1", layers=[b"new"])
        clock.advance(10 * DAY)
        assert held_back(await mirror.get(TAG))[0] == new.digest
        clock.advance(3 * DAY)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_second_move_starts_anew_and_one_taken_back_ends(hub, holding):
    async with holding(COOLDOWN) as (mirror, clock):
        old, _ = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        third = hub.add_image(APP, "1", layers=[b"third"])
        clock.advance(2 * DAY)
        answer = await mirror.get(TAG)
        assert answer.sha256 == old.digest
        assert held_back(answer)[0] == third.digest
        assert abs(epoch(held_back(answer)[1]) - clock() - 3 * DAY) < 600
        hub.add_image(APP, "1", layers=[b"old"])
        clock.advance(61)
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)) == (old.digest, None)
        assert held_back(await mirror.get(TAG)) is None


async def test_clock_is_kept_over_restarts(hub, holding):
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        until = held_back(await mirror.get(TAG))[1]
    async with holding(COOLDOWN, clock=clock) as (mirror, clock):
        clock.advance(2 * DAY)
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)) == (old.digest, (new.digest, until))
        clock.advance(DAY)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_digest_that_another_tag_has_long_named_is_followed_at_once(hub, holding):
    """The clock is that of the digest, whichever name it had first; also if it was seen before there was a rule."""
    async with holding() as (mirror, clock):
        hub.add_image(APP, "1", layers=[b"old"])
        new = hub.add_image(APP, "2", layers=[b"new"])
        await mirror.get(manifest_path("2"))
        await mirror.get(TAG)
    async with holding(COOLDOWN, clock=clock) as (mirror, clock):
        clock.advance(4 * DAY)
        hub.move_tag(APP, "1", new.digest)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_new_image_can_be_pulled_by_its_digest(hub, holding):
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        assert (await mirror.get(TAG)).sha256 == old.digest
        assert (await mirror.get(manifest_path(new.digest))).sha256 == new.digest
        assert (await mirror.get(TAG)).sha256 == old.digest


async def test_old_image_that_cannot_be_had_any_more_is_unavailable(hub, holding):
    """503, by GET from the check and while the tag is fresh."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        mirror.store.files.delete(Digest.parse(old.digest))
        mirror.store.generation.change()
        hub.delete_manifest(APP, old.digest)
        for _ in range(2):
            answer = await mirror.get(TAG)
            assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
            assert new.digest in answer.body.decode()


async def test_upstream_without_digests_in_heads(hub, holding):
    """The tag is fetched to learn its digest; the old image is still served."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        hub.script(Rule(kind="manifest", times=None), HeadWithoutDigest())
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, new.digest)


async def test_stale_answers_say_what_is_held_back(hub, holding):
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        for blob in (old.config, *old.layers):
            await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        await mirror.get(TAG)
        clock.advance(3 * DAY - 3600)
        hub.script(Rule(kind="manifest", times=None), Status(503))
        answer = await mirror.get(TAG)
        assert (answer.sha256, answer.cache, held_back(answer)[0]) == (old.digest, "STALE", new.digest)
        clock.advance(3601)
        answer = await mirror.get(TAG)
        assert (answer.sha256, answer.cache) == (old.digest, "STALE")


async def test_offline_registry_is_not_asked_when_a_cooldown_ends(hub, holding):
    """What is held does not expire, and is a hit."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, _ = await moved(hub, mirror, clock)
        for blob in (old.config, *old.layers):
            await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        await mirror.get(TAG)
    async with holding(COOLDOWN, clock=clock, offline=True) as (mirror, clock):
        clock.advance(4 * DAY)
        answer = await mirror.get(TAG)
        assert (answer.sha256, answer.cache, held_back(answer)) == (old.digest, "HIT", None)


async def test_index_that_cannot_be_written_lets_nothing_through(hub, holding, monkeypatch):
    """The clock cannot be kept then, so it does not run."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, _ = await moved(hub, mirror, clock)
        monkeypatch.setattr(type(mirror.store.index.tables["tags"]), "_writable", lambda self: None)
        for _ in range(2):
            assert (await mirror.get(TAG)).sha256 == old.digest
            clock.advance(2 * DAY)


async def test_two_workers_report_a_hold_once(hub, holding, tmp_path):
    """Both find the move at once, and both keep the old image."""
    async with Receiver() as receiver:
        notify = {"sync": {"interval": "0", "notify": {"url": receiver.url}}}
        async with holding(COOLDOWN, **notify) as (one, clock), holding(COOLDOWN, clock=clock, **notify) as (two, later):
            old, new = await moved(hub, one, later)
            clock.offset = later.offset
            answers = await asyncio.gather(*(mirror.get(TAG) for mirror in (one, two) * 4))
            assert {answer.sha256 for answer in answers} == {old.digest}
            assert {held_back(answer)[0] for answer in answers} == {new.digest}
            (told,) = await receiver.got(1)
            assert json.loads(told.body)["new"]["digest"] == new.digest
        assert len(receiver.received) == 1


async def test_deleted_tag_that_comes_back_has_moved(hub, holding):
    """Whoever deletes a tag and pushes it again gets no further than whoever moves it."""
    async with holding(COOLDOWN) as (mirror, clock):
        old = hub.add_image(APP, "1", layers=[b"old"])
        await mirror.get(TAG)
        hub.delete_tag(APP, "1")
        clock.advance(61)
        assert (await mirror.get(TAG)).status == 404
        new = hub.add_image(APP, "1", layers=[b"new"])
        clock.advance(61)
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, new.digest)


async def test_purge_of_a_held_back_tag_lets_nothing_through(hub, holding):
    """The old image is gone, and the new one has not cooled down."""
    async with holding(COOLDOWN) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        assert (await Orders(mirror).ask("POST", "/api/v1/purge", {"match": f"{APP}:1"}))[1]["tags"] == 1
        assert (await mirror.get(TAG)).status == 503
        clock.advance(3 * DAY)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_soft_purge_keeps_the_old_image(hub, holding):
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        await Orders(mirror).ask("POST", "/api/v1/purge", {"match": f"{APP}:1", "soft": True})
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, new.digest)


async def test_reload_with_a_shorter_cooldown_counts_at_once(hub, holding, monkeypatch):
    async with holding(COOLDOWN) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        clock.advance(DAY)
        await mirror.get(TAG)
        await mirror.reload(registries=registries(hub, {**COOLDOWN, "cooldown": "1h"}))
        Holding(hub, mirror.store_path, monkeypatch).clock(mirror, clock)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_lost_index_begins_the_clocks_anew(hub, holding):
    """What is unknown is new, and served."""
    async with holding(COOLDOWN) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        table = mirror.store.index.tables["tags"]
        table.delete_many(table.keys_from(""))
        mirror.store.generation.change()
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_sight_from_the_future_counts_as_made_now(hub, holding):
    """A clock that is set back does not hold a tag back for as long as it was ahead."""
    async with holding(COOLDOWN) as (mirror, clock):
        clock.advance(1000 * DAY)
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
    async with holding(COOLDOWN) as (mirror, clock):
        await mirror.get(TAG)
        clock.advance(3 * DAY + 61)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_signatures_are_not_held_back(hub, holding):
    """Their images are."""
    async with holding({"match": "*/*", "cooldown": "3d"}) as (mirror, clock):
        image = hub.add_image(APP, "1")
        name = f"sha256-{image.digest.removeprefix('sha256:')}.sig"
        hub.add_image(APP, name, layers=[b"one"])
        await mirror.get(manifest_path(name))
        second = hub.add_image(APP, name, layers=[b"two"])
        clock.advance(61)
        assert (await mirror.get(manifest_path(name))).sha256 == second.digest


async def test_other_tags_cost_no_rows(hub, holding):
    """A tag without such a rule follows, and nothing is recorded of it."""
    async with holding({"match": "library/other", "cooldown": "3d"}) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        assert (await mirror.get(TAG)).sha256 == new.digest
        rows = mirror.store.index.tables["tags"].keys_from("")
        assert not [key for key in rows if key.startswith(("seen|", "held|", "told|"))]


# ---- new tags and digests


async def test_new_tag_is_refused_until_it_has_cooled_down(hub, holding):
    """By tag, by digest and by HEAD, with the time left; upstream is asked once within the ttl."""
    async with holding(REFUSING) as (mirror, clock):
        image = hub.add_image(APP, "1")
        for path in (TAG, manifest_path(image.digest)):
            answer = await mirror.get(path)
            assert (answer.status, answer.code()) == (403, "DENIED")
            assert "2d23h are left" in answer.body.decode()
            assert (await mirror.head(path)).status == 403
        assert hub.count(kind="manifest", status=200) == 1
        assert not mirror.holds(image.digest)
        clock.advance(3 * DAY)
        assert (await mirror.get(manifest_path(image.digest))).sha256 == image.digest
        assert (await mirror.get(TAG)).sha256 == image.digest


async def test_new_digest_starts_its_clock_only_if_upstream_has_it(hub, holding):
    async with holding(REFUSING) as (mirror, clock):
        image = hub.add_image(APP, "1")
        assert (await mirror.get(manifest_path(ABSENT))).status == 404
        hub.script(Rule(kind="manifest", times=None), Status(503))
        assert (await mirror.get(manifest_path(image.digest))).status == 503
        hub.clear_script()
        clock.advance(61)
        assert (await mirror.get(manifest_path(image.digest))).status == 403
        assert mirror.store.index.holds.sight(tag_name("1")[0], Digest.parse(ABSENT)) is None


async def test_manifests_of_an_image_that_has_cooled_down_can_be_pulled(hub, holding):
    """A client pulls an index by tag, and its manifests by digest: those were never seen by themselves."""
    async with holding(REFUSING) as (mirror, clock):
        index = hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64"])
        assert (await mirror.get(TAG)).status == 403
        clock.advance(3 * DAY)
        assert (await mirror.get(TAG)).sha256 == index.digest
        for child in index.children.values():
            assert (await mirror.get(manifest_path(child.digest))).sha256 == child.digest


async def test_what_was_held_before_there_was_a_rule_is_not_new(hub, holding):
    """Digests that workloads are pinned to are served on."""
    async with holding() as (mirror, clock):
        image = hub.add_image(APP, "1")
        await mirror.get(manifest_path(image.digest))
        other = hub.add_image(APP, "2", layers=[b"other"])
        await mirror.get(manifest_path("2"))
    async with holding(REFUSING, clock=clock) as (mirror, clock):
        assert (await mirror.get(manifest_path(image.digest))).sha256 == image.digest
        assert (await mirror.get(manifest_path("2"))).sha256 == other.digest


async def test_digest_that_was_held_stays_known_when_a_tag_moves_to_it(hub, holding):
    """Workloads are pinned to it; the tag's move begins no clock that refuses it."""
    async with holding() as (mirror, clock):
        image = hub.add_image(APP, "2")
        await mirror.get(manifest_path(image.digest))
        hub.add_image(APP, "1", layers=[b"old"])
        await mirror.get(TAG)
    async with holding(REFUSING, clock=clock) as (mirror, clock):
        clock.advance(4 * DAY)
        hub.move_tag(APP, "1", image.digest)
        assert (await mirror.head(TAG)).headers["Docker-Content-Digest"] == image.digest
        mirror.store.generation.change()
        assert (await mirror.get(manifest_path(image.digest))).sha256 == image.digest


async def test_moved_tag_is_not_refused_but_kept(hub, holding):
    """And the new image is refused by its digest."""
    async with holding() as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
    async with holding(REFUSING, clock=clock) as (mirror, clock):
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, new.digest)
        assert (await mirror.get(manifest_path(new.digest))).status == 403


async def test_resync_and_warm_let_images_mature(hub, holding):
    """Their sight counts, and they fetch nothing before."""
    async with holding(REFUSING) as (mirror, clock):
        orders, image = Orders(mirror), hub.add_image(APP, "1")
        done = await orders.warm(f"{APP}:1")
        assert (done["result"], done["tags"]) == ("completed", {"held_back": 1})
        done = await orders.warm(f"{APP}@{image.digest}")
        assert done["tags"] == {"held_back": 1}
        assert not mirror.holds(image.digest)
        clock.advance(3 * DAY)
        done = await orders.warm(f"{APP}:1")
        assert done["tags"] == {"moved": 1}
        assert named(mirror, "1") == image.digest


async def test_tag_of_signatures_admits_no_digest(hub, holding):
    """It is not held back, so whoever moves it could let anything through."""
    async with holding(REFUSING) as (mirror, clock):
        old, new = hub.add_image(APP, "1", layers=[b"old"]), hub.add_image(APP, "2", layers=[b"new"])
        name = f"sha256-{old.digest.removeprefix('sha256:')}.sig"
        hub.move_tag(APP, name, new.digest)
        assert (await mirror.get(manifest_path(name))).sha256 == new.digest
    async with holding(REFUSING, clock=clock) as (mirror, clock):
        assert (await mirror.get(manifest_path(new.digest))).status == 403


# ---- the resync


async def test_resync_does_not_follow_and_fetches_nothing(hub, holding):
    """Until the new image has cooled down; then it is fetched ahead of the first client."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        for blob in (old.config, *old.layers):
            await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        done = await Orders(mirror).sync(f"{APP}:1")
        assert (done["result"], done["tags"], done["problems"]) == ("completed", {"held_back": 1}, {})
        assert await mirror.metric("sync_tags_total", result="held_back") == 1
        assert named(mirror, "1") == old.digest
        assert not mirror.holds(new.digest)
        assert not mirror.holds(new.layers[0].digest)
        clock.advance(3 * DAY)
        assert (await Orders(mirror).sync(f"{APP}:1"))["tags"] == {"moved": 1}
        assert mirror.holds(new.layers[0].digest)
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_configured_image_is_completed_as_it_was(hub, holding):
    """The old image of a configured tag is fetched whole while the new one is held back."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        done = await Orders(mirror).warm(f"{APP}:1")
        assert done["tags"] == {"held_back": 1}
        assert mirror.holds(old.layers[0].digest)
        assert not mirror.holds(new.layers[0].digest)


# ---- frozen tags


async def test_frozen_tag_is_not_forgotten_with_its_content(hub, holding):
    """After eviction it is fetched again as it was, by its digest."""
    async with holding(FROZEN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        mirror.store.files.delete(Digest.parse(old.digest))
        mirror.store.generation.change()
        leftovers = mirror.services.janitor.leftovers
        clock_before, leftovers._clock = leftovers._clock, lambda: time.time() + 100 * DAY
        await asyncio.to_thread(leftovers.clear)
        leftovers._clock = clock_before
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, new.digest)


async def test_frozen_tag_is_never_followed(hub, holding):
    async with holding(FROZEN) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        clock.advance(400 * DAY)
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)) == (old.digest, (new.digest, None))
        assert (await Orders(mirror).sync(f"{APP}:1"))["tags"] == {"held_back": 1}
        assert (await mirror.get(manifest_path(new.digest))).sha256 == new.digest


async def test_one_notification_for_each_new_digest(hub, holding, log):
    """And one line in the log. Also over restarts, and if upstream goes back and forth."""
    async with Receiver() as receiver:
        notify = {"sync": {"interval": "0", "notify": {"url": receiver.url}}}
        async with holding(FROZEN, **notify) as (mirror, clock):
            old, new = await moved(hub, mirror, clock)
            for _ in range(2):
                await mirror.get(TAG)
                clock.advance(61)
            await receiver.got(1)
            hub.move_tag(APP, "1", old.digest)
            await mirror.get(TAG)
        async with holding(FROZEN, clock=clock, **notify) as (mirror, clock):
            hub.move_tag(APP, "1", new.digest)
            clock.advance(61)
            assert held_back(await mirror.get(TAG))[0] == new.digest
            third = hub.add_image(APP, "1", layers=[b"third"])
            clock.advance(61)
            await mirror.get(TAG)
            first, second = (json.loads(one.body) for one in await receiver.got(2))
            assert first["event"] == second["event"] == "tag_held_back"
            assert (first["new"]["digest"], second["new"]["digest"]) == (new.digest, third.digest)
            assert (first["old"]["digest"], first["reason"], first["until"]) == (old.digest, "freeze", None)
    assert [event["digest"] for event in log if event["event"] == "tag_held_back"] == [new.digest, third.digest]
