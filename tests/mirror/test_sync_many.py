"""A store of very many tags: a resync of them takes little memory, and holds up no request."""

import asyncio
import gc
import time
import tracemalloc

import pytest

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from tests.fakehub import RateLimited, Rule
from tests.mirror.syncing import Orders
from tests.support.names import tag_name
from tests.support.waiting import LIMIT

TAGS = 4000
# Of a plan. As objects, a tag takes more than a kilobyte.
BYTES_PER_TAG = 250
# Of everything else that the mirror does meanwhile.
OTHER_BYTES = 2_000_000
# Images that are synced at a time, and some more for the order in which tasks take turns.
MOST_PER_TURN = 16


@pytest.fixture
def full(hub, mirror):
    """A mirror that knows so many tags, and whose upstream answers 429."""
    hub.script(Rule(kind="manifest", times=None), RateLimited())
    now = time.time()
    digest = Digest.of(b"manifest")
    record = TagRecord(digest, "application/vnd.oci.image.manifest.v1+json", 8, now - 3600, now - 3600, now)
    mirror.store.index.tables["tags"].set_many(
        (f"tag|{tag_name(str(number))[0]}|{number}", _row(record), str(digest)) for number in range(TAGS)
    )
    return mirror


def _row(record):
    return {**{name: getattr(record, name) for name in record.__slots__}, "digest": str(record.digest)}


async def test_plan_takes_little_memory(full):
    """A resync of all tags plans them in a few bytes each, so it does not grow the mirror."""
    orders = Orders(full)
    assert (await orders.sync("nothing"))["total"] == 0
    gc.collect()
    tracemalloc.start()
    try:
        ended = await orders.sync()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ended["total"] == TAGS
    assert peak < OTHER_BYTES + TAGS * BYTES_PER_TAG


async def test_skipped_images_hold_up_no_request(full):
    """The event loop gets a turn after every few images of a registry that is not asked any more."""
    skipped = full.services.metrics.sync_tags.labels("skipped")
    most, before, over = 0, 0, asyncio.Event()

    async def turn():
        nonlocal most, before
        while not over.is_set():
            now = skipped._value.get()
            most, before = max(most, now - before), now
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    ended = await Orders(full).sync()
    over.set()
    await asyncio.wait_for(turning, LIMIT)
    assert ended["tags"]["skipped"] == TAGS
    assert most <= MOST_PER_TURN
