"""The list of images over the admin API."""

import asyncio
import gc
import threading
import tracemalloc

import pytest

from mirror.admin import operations
from mirror.core.digest import Digest
from mirror.storage import images
from tests.support.names import APP, manifest_path, tag_name
from tests.support.waiting import LIMIT, eventually


@pytest.fixture
def lists(monkeypatch):
    """The patterns of which a list was made; making one waits for `release` if that was cleared."""

    class Lists(list):
        release = threading.Event()

    made, original = Lists(), operations.images
    made.release.set()

    def counted(files, index, pattern):
        made.append(pattern)
        assert made.release.wait(LIMIT)
        return original(files, index, pattern)

    monkeypatch.setattr(operations, "images", counted)
    yield made
    made.release.set()


async def listed(mirror, query=""):
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/images?{query}") as response:
        return await response.json()


async def test_pages_come_from_one_list(hub, mirror, lists):
    """A walk reads the store once, the next one anew; totals are those of all pages."""
    for tag in "12345":
        hub.add_image(APP, tag)
        await mirror.get(manifest_path(tag))
    for walk in (1, 2):
        names, last = [], None
        while True:
            page = await listed(mirror, "n=2" + (f"&last={last}" if last else ""))
            names += [image["name"] for image in page["images"]]
            assert page["registries"][0]["images"] == 5
            if (last := page["next"]) is None:
                break
        assert names == [f"docker.io/{APP}:{tag}" for tag in "12345"]
        assert len(lists) == walk


async def test_pages_of_another_pattern(hub, mirror, lists):
    """A walk between the pages of another one does not change those."""
    for tag in "123":
        hub.add_image(APP, tag)
        await mirror.get(manifest_path(tag))
    first = await listed(mirror, "n=1")
    assert (await listed(mirror, "n=1&match=library/none"))["images"] == []
    (image,) = (await listed(mirror, f"n=1&last={first['next']}"))["images"]
    assert image["name"] == f"docker.io/{APP}:2"


async def test_manifest_of_several_tags_is_read_once(hub, mirror, monkeypatch):
    """What an image holds is worked out once for the list and once for a page, however many tags name it."""
    image = hub.add_image(APP, "1")
    for tag in "12345":
        hub.move_tag(APP, tag, image.digest)
        await mirror.get(manifest_path(tag))
    read, original = [], images.reach

    def counted(files, digests):
        read.extend(map(str, digests))
        return original(files, digests)

    monkeypatch.setattr(images, "reach", counted)
    assert len((await listed(mirror))["images"]) == 5
    assert read == [image.digest] * 2


async def test_list_takes_little_memory(mirror):
    """A list of all images takes the memory of their names and of one repository."""
    repositories, tags = 40, 100
    digests = [Digest.of(b"%d" % number) for number in range(repositories)]
    for number, digest in enumerate(digests):
        mirror.store.files.put(digest, b"%d" % number)
        record = {"digest": str(digest), "media_type": "", "size": 1, "checked": 1.0, "changed": 1.0, "pulled": 1.0}
        rows = ((f"tag|docker.io/team/app-{number}|{tag}", record, str(digest)) for tag in range(tags))
        mirror.store.index.tables["tags"].set_many(rows)
    await listed(mirror)
    gc.collect()
    tracemalloc.start()
    try:
        answer = await listed(mirror, "n=10")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(answer["images"]), answer["registries"][0]["images"]) == (10, repositories * tags)
    assert peak < 1_500_000 + repositories * tags * 150


async def test_gone_image_is_left_out_of_later_pages(hub, mirror):
    """An image that a purge removes between two pages of a walk is not listed."""
    for tag in "123":
        hub.add_image(APP, tag)
        await mirror.get(manifest_path(tag))
    first = await listed(mirror, "n=1")
    mirror.store.index.tags.delete(*tag_name("2"))
    page = await listed(mirror, f"n=2&last={first['next']}")
    assert [image["tag"] for image in page["images"]] == ["3"]


async def test_lists_leave_threads_to_others(mirror, lists):
    """While many lists of a large store are made, health and metrics are answered."""
    lists.release.clear()
    asking = [asyncio.create_task(listed(mirror)) for _ in range(40)]
    await eventually(lambda: len(lists) >= 1)
    for path in ("readyz", "metrics"):
        async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/{path}") as response:
            assert response.status == 200
    assert len(lists) == 1
    lists.release.set()
    await asyncio.gather(*asking)
