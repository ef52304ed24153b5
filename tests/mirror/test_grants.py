"""Who may read what: a blob is served for the repository through which upstream grants it."""

import asyncio

import pytest

from tests.fakehub import NoHeaders, Rule
from tests.mirrors import MirrorUnderTest

ONE, OTHER = "library/one", "library/other"


@pytest.fixture
async def private(hub, tmp_path):
    """A mirror that uses the registry with credentials: each repository's rights are its own."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    hub.users = {"robot": "secret"}
    entry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "username": "robot",
        "password_file": str(password),
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": entry}) as mirror:
        yield mirror


async def test_no_of_another_repository(hub, mirror, all_in):
    """Who joins a download that another repository began gets the blob all the same when that one is refused it."""
    hub.add_image(ONE, "1")
    digest = hub.add_blob(OTHER, b"content")
    held = NoHeaders()
    hub.script(Rule(kind="blob", repository=ONE, host="registry"), held)
    refused = asyncio.create_task(mirror.get(f"/v2/{ONE}/blobs/{digest}"))
    await asyncio.wait_for(held.reached.wait(), 10)
    granted = asyncio.create_task(mirror.get(f"/v2/{OTHER}/blobs/{digest}"))
    await all_in(2)
    async with asyncio.timeout(10):
        while mirror.download(digest).readers < 2:
            await asyncio.sleep(0)
    held.release()
    answer = await granted
    assert (answer.status, answer.body) == (200, b"content")
    assert (await refused).status == 404
    assert (await mirror.get(f"/v2/{OTHER}/blobs/{digest}")).status == 200


async def test_public_registry_is_one_whole(hub, mirror):
    """What came through one repository of a registry without credentials needs no check for another."""
    digest = hub.add_blob(ONE, b"content")
    hub.add_image(OTHER, "1")
    await mirror.get(f"/v2/{ONE}/blobs/{digest}")
    await mirror.idle()
    hub.reset_counters()
    assert (await mirror.get(f"/v2/{OTHER}/blobs/{digest}")).cache == "HIT"
    assert hub.count() == 0


async def test_grant_costs_one_head(hub, private):
    """With credentials, a repository that asks for a known blob is checked by one HEAD, and nothing is fetched twice."""
    for repository in (ONE, OTHER):
        digest = hub.add_blob(repository, b"content")
    await private.get(f"/v2/{ONE}/blobs/{digest}")
    await private.idle()
    hub.reset_counters()
    for _ in range(2):
        answer = await private.get(f"/v2/{OTHER}/blobs/{digest}")
        assert (answer.status, answer.cache, answer.body) == (200, "HIT", b"content")
    assert hub.count("GET", "blob") == 0
    assert hub.count("HEAD", "blob", repository=OTHER, status=200) == 1


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_grant_no_content(hub, private, kind, method):
    """With credentials, what is held by way of one repository is not served to another that upstream refuses."""
    image = hub.add_image(ONE, "1")
    hub.add_image(OTHER, "1", layers=[b"else"])
    digest = image.digest if kind == "manifests" else image.layers[0].digest
    assert (await private.get(f"/v2/{ONE}/{kind}/{digest}")).status == 200
    await private.idle()
    for _ in range(2):
        answer = await private.get(f"/v2/{OTHER}/{kind}/{digest}", method)
        assert answer.status == 404
    assert (await private.get(f"/v2/{ONE}/{kind}/{digest}")).cache == "HIT"


async def test_no_grant_in_an_outage(hub, private):
    """With credentials and upstream down, a blob is served for the repository that was granted it, and for no other."""
    digest = hub.add_blob(ONE, b"content")
    hub.add_image(OTHER, "1")
    await private.get(f"/v2/{ONE}/blobs/{digest}")
    await private.idle()
    await hub.stop()
    assert (await private.get(f"/v2/{ONE}/blobs/{digest}")).cache == "HIT"
    assert (await private.get(f"/v2/{OTHER}/blobs/{digest}")).status == 503
