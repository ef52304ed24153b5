"""Checks of one tag that overlap: what the one that began last has found is what counts, in every process of a store."""

import asyncio

import pytest

from mirror.core.names import Repository, Tag
from tests.fakehub import NoHeaders, Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.waiting import LIMIT

APP = "library/app"
TAG = f"/v2/{APP}/manifests/1"
HEAD = Rule(kind="manifest", method="HEAD", reference="1")


@pytest.fixture
async def workers(hub, tmp_path, pulls_left):
    """Two mirrors that share a store, as two worker processes do; each pull of a tag has it checked, an unknown one by HEAD."""
    settings = {"tags": {"ttl": "0s"}}
    async with (
        MirrorUnderTest(hub, tmp_path / "store", **settings) as one,
        MirrorUnderTest(hub, tmp_path / "store", **settings) as two,
    ):
        for mirror in (one, two):
            await pulls_left(mirror, 50)
        yield one, two


def recorded(mirror):
    """The digest that the store's index has for the tag, or None."""
    record = mirror.store.index.tags.get(Repository.parse("docker.io", APP), Tag.parse("1"))
    return None if record is None else str(record.digest)


async def overtaken(hub, first, *faults):
    """Begin a check in `first` whose answer, by what upstream has now, is held up."""
    held = NoHeaders()
    hub.script(HEAD, *faults, held)
    asking = asyncio.create_task(first.get(TAG))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    return held, asking


@pytest.mark.parametrize("pulled", [True, False], ids=["known", "unknown"])
async def test_slow_check_does_not_undo_a_newer_one(hub, workers, pulled):
    """A check that began before the tag moved and ends after another has seen the move changes nothing."""
    one, two = workers
    hub.add_image(APP, "1")
    if pulled:
        await one.get(TAG)
    held, asking = await overtaken(hub, one)
    new = hub.add_image(APP, "1", layers=[b"new"])
    assert (await two.get(TAG)).body == new.raw
    held.release()
    await asking
    assert recorded(two) == new.digest


async def test_slow_check_does_not_bring_back_what_is_gone(hub, workers):
    """A check that began before upstream deleted the tag does not undo what another has found since."""
    one, two = workers
    hub.add_image(APP, "1")
    await one.get(TAG)
    held, asking = await overtaken(hub, one)
    hub.delete_tag(APP, "1")
    assert (await two.get(TAG)).status == 404
    held.release()
    await asking
    assert recorded(two) is None


@pytest.mark.parametrize("status", [404, 403])
async def test_slow_refusal_does_not_take_away_a_newer_tag(hub, workers, status):
    """A no that was asked for earlier neither deletes what another check has found since nor is repeated to clients."""
    one, two = workers
    held, asking = await overtaken(hub, one, Status(status))
    new = hub.add_image(APP, "1")
    assert (await two.get(TAG)).body == new.raw
    held.release()
    assert (await asking).status == 404
    assert recorded(two) == new.digest
    assert (await two.get(TAG)).body == new.raw


async def test_unknown_tag_is_fetched_once(hub, tmp_path):
    """Clients of two workers that ask for an unknown tag at once cost one pull, although no HEAD comes before it."""
    image = hub.add_image(APP, "1")
    async with (
        MirrorUnderTest(hub, tmp_path / "store") as one,
        MirrorUnderTest(hub, tmp_path / "store") as two,
    ):
        answers = await asyncio.gather(one.get(TAG), two.get(TAG), one.get(TAG), two.get(TAG))
    assert {answer.body for answer in answers} == {image.raw}
    assert hub.count("HEAD", "manifest") == 0
    assert hub.count("GET", "manifest", status=200) == 1
