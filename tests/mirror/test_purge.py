"""Purge and the list of images, over the admin address."""

import asyncio
import json
import os
import time

import pytest

from tests.fakehub import Rule
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG
from tests.support.waiting import LIMIT
from tests.support.wire import ask, request


class Operator:
    """Asks the admin address of a mirror."""

    def __init__(self, mirror, token=None):
        self.mirror = mirror
        self.purged = []
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def ask(self, method, path, **kwargs):
        url = f"http://127.0.0.1:{self.mirror.admin_port}{path}"
        kind = {} if method == "GET" else {"Content-Type": "application/json"}
        async with self.mirror.session.request(method, url, headers={**self.headers, **kind}, **kwargs) as response:
            return response.status, json.loads(await response.read())

    async def purge(self, match, **order):
        status, answer = await self.ask("POST", "/api/v1/purge", json={"match": match, **order})
        assert status == 200, answer
        self.purged = answer.pop("images")
        return answer

    async def delete(self, name):
        status, answer = await self.ask("DELETE", f"/api/v1/images/{name}")
        self.purged = answer.pop("images", [])
        return status, answer

    async def images(self, **query):
        status, answer = await self.ask("GET", "/api/v1/images", params=query)
        assert status == 200, answer
        return answer["images"]


@pytest.fixture
def operator(mirror):
    return Operator(mirror)


@pytest.fixture
async def secured(hub, tmp_path):
    """A mirror whose admin address wants a token."""
    (tmp_path / "token").write_text("s3cret\n")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(tmp_path / "token")}) as mirror:
        yield mirror


def counts(tags=0, manifests=0, blobs=0, size=0):
    return {"tags": tags, "manifests": manifests, "blobs": blobs, "bytes": size}


def disk(mirror):
    """Bytes of all held files."""
    return sum(path.stat().st_size for path in (mirror.store_path / "blobs").rglob("*") if path.is_file())


async def pulled(hub, mirror, tag, repository=APP, **image):
    """An image that the mirror holds completely."""
    made = hub.add_image(repository, tag, **image)
    await pull(mirror, made, tag, repository)
    return made


async def pull(mirror, image, tag, repository=APP):
    assert (await mirror.get(f"/v2/{repository}/manifests/{tag}")).body == image.raw
    for child in image.children.values():
        assert (await mirror.get(f"/v2/{repository}/manifests/{child.digest}")).body == child.raw
    for one in [image, *image.children.values()]:
        for blob in [one.config, *one.layers]:
            assert (await mirror.get(f"/v2/{repository}/blobs/{blob.digest}")).sha256 == blob.digest
    await mirror.idle()


async def test_tag_of_two_that_share_layers(hub, mirror, operator):
    """One tag goes with what only it needs; the bytes told are those freed on disk, and a dry run tells the same."""
    shared = os.urandom(5000)
    one = await pulled(hub, mirror, "1", layers=[shared, os.urandom(3000)])
    two = await pulled(hub, mirror, "2", layers=[shared, os.urandom(2000)])
    size = len(one.raw) + one.config.size + 3000
    before = disk(mirror)
    assert await operator.purge("app:1", dry_run=True) == counts(1, 1, 2, size)
    assert disk(mirror) == before
    assert await operator.purge("app:1") == counts(1, 1, 2, size)
    assert before - disk(mirror) == size
    assert await mirror.metric("purged_bytes_total") == size
    assert await mirror.metric("storage_blobs") == 4
    hub.reset_counters()
    await pull(mirror, two, "2")
    assert hub.count() == 0
    await pull(mirror, one, "1")
    assert hub.count("GET", "manifest") == 1
    assert disk(mirror) == before


async def test_purge_again_is_nothing(hub, mirror, operator):
    """What is gone is not counted again, and a pattern that matches nothing is no error."""
    await pulled(hub, mirror, "1")
    await operator.purge("app:1")
    for match in ("app:1", "none", "docker.io/*/none:*"):
        assert await operator.purge(match) == counts()


@pytest.mark.parametrize("name", [f"docker.io/{APP}:1", "app:1", "docker.io/library%2Fapp%3A1"])
async def test_delete_tag(hub, mirror, operator, name):
    """DELETE takes a tag out, by its full name or as Docker's users write it."""
    image = await pulled(hub, mirror, "1")
    await pulled(hub, mirror, "2")
    status, answer = await operator.delete(name)
    assert (status, answer["tags"], answer["manifests"]) == (200, 1, 1)
    assert not mirror.holds(image.digest)
    assert [entry["tag"] for entry in await operator.images()] == ["2"]


async def test_delete_digest(hub, mirror, operator):
    """A digest goes with every tag that names it; other manifests of the repository stay."""
    image = await pulled(hub, mirror, "1")
    hub.move_tag(APP, "also", image.digest)
    await mirror.get(f"/v2/{APP}/manifests/also")
    await pulled(hub, mirror, "2")
    status, answer = await operator.delete(f"docker.io/{APP}@{image.digest}")
    assert (status, answer["tags"], answer["manifests"], answer["blobs"]) == (200, 2, 1, 2)
    assert [entry["tag"] for entry in await operator.images()] == ["2"]


async def test_untagged_manifest(hub, mirror, operator):
    """What was only ever pulled by digest can be purged by it."""
    image = hub.add_image(APP, None)
    await pull(mirror, image, image.digest)
    before = disk(mirror)
    (listed,) = await operator.images()
    assert (listed["tag"], listed["digest"], listed["complete"]) == (None, image.digest, True)
    assert await operator.purge(listed["name"]) == counts(0, 1, 2, before)
    assert disk(mirror) == 0


async def test_repository(hub, mirror, operator):
    """A repository goes whole, with what was pulled by digest and what tags once named; others keep what they share."""
    shared = os.urandom(4000)
    await pulled(hub, mirror, "1", layers=[shared])
    untagged = hub.add_image(APP, None, layers=[os.urandom(10)])
    await pull(mirror, untagged, untagged.digest)
    other = await pulled(hub, mirror, "1", repository="library/other", layers=[shared])
    status, answer = await operator.delete("app")
    assert (status, answer["tags"], answer["manifests"], answer["blobs"]) == (200, 1, 2, 3)
    hub.reset_counters()
    await pull(mirror, other, "1", "library/other")
    assert hub.count() == 0
    assert {entry["repository"] for entry in await operator.images()} == {"library/other"}


async def test_same_manifest_in_two_repositories(hub, mirror, operator):
    """A manifest that another repository holds too stays for that one, and is asked for anew through the first."""
    image = await pulled(hub, mirror, "1", layers=[b"same"])
    hub.add_manifest("library/other", image.raw, image.media_type, "1")
    await mirror.get("/v2/library/other/manifests/1")
    assert await operator.purge("app") == counts(1)
    assert mirror.holds(image.digest)
    assert [entry["name"] for entry in await operator.images()] == ["docker.io/library/other:1"]


@pytest.mark.parametrize("shared", ["layer", "image"])
async def test_purged_image_grants_nothing(hub, mirror, operator, shared):
    """What another repository still needs is not served through the purged one unless upstream grants it there again."""
    image = await pulled(hub, mirror, "1", layers=[b"shared"])
    contents = [f"blobs/{image.layers[0].digest}"]
    if shared == "image":
        hub.add_manifest("library/other", image.raw, image.media_type, "1")
        contents += [f"blobs/{image.config.digest}", f"manifests/{image.digest}"]
        await mirror.get("/v2/library/other/manifests/1")
    else:
        await pulled(hub, mirror, "1", "library/other", layers=[b"shared", b"own"])
    await operator.purge("app:1")
    del hub.repositories[APP]
    for content in contents:
        answer = await mirror.get(f"/v2/library/other/{content}")
        assert (answer.status, answer.cache) == (200, "HIT")
        assert (await mirror.get(f"/v2/{APP}/{content}")).status == 404


async def test_purge_keeps_the_grants_of_other_images(hub, mirror, operator):
    """What another image of the same repository names is served there as before, also while upstream is unavailable."""
    first = await pulled(hub, mirror, "1", layers=[b"base", b"own"])
    await pulled(hub, mirror, "2", layers=[b"base"])
    await pulled(hub, mirror, "3", "library/other", layers=[b"own"])
    await operator.purge("app:1")
    await hub.stop()
    assert (await mirror.get(f"/v2/{APP}/blobs/{first.layers[0].digest}")).cache == "HIT"
    assert (await mirror.get(f"/v2/{APP}/blobs/{first.layers[1].digest}")).status == 503


async def test_glob(hub, mirror, operator):
    """A glob takes what it matches and nothing else."""
    for tag in ("1.0", "1.1", "2.0"):
        await pulled(hub, mirror, tag)
    await pulled(hub, mirror, "1.0", repository="team/app")
    assert (await operator.purge("*/app:1.*"))["tags"] == 2
    assert sorted(entry["name"] for entry in await operator.images()) == ["docker.io/library/app:2.0", "docker.io/team/app:1.0"]
    assert (await operator.purge("docker.io/*"))["tags"] == 2
    assert disk(mirror) == 0


async def test_index(hub, mirror, operator):
    """An index goes with its manifests and their blobs."""
    await pulled(hub, mirror, "1", platforms=["linux/amd64", "linux/arm64"])
    before = disk(mirror)
    assert await operator.purge("app:1") == counts(1, 3, 3, before)
    assert disk(mirror) == 0
    assert list(mirror.store.index.manifests.rows()) == list(mirror.store.index.tags.matching()) == []


async def test_age(hub, mirror, operator):
    """With an age, only what nobody has pulled for so long goes; the last pull counts, wherever it was noted."""
    for tag in ("old", "young", "noted"):
        await pulled(hub, mirror, tag)
    index, (repository, *_) = mirror.store.index, next(iter(mirror.store.index.tags.matching()))
    mirror.usage.write(mirror.store.files, index)
    for repository, tag, record in list(index.tags.matching()):
        if str(tag) != "young":
            index.tags.delete(repository, tag)
            index.tags.put(repository, tag, type(record)(record.digest, record.media_type, record.size, 1.0, 1.0, 1.0))
            if str(tag) == "noted":
                index.tags.note_pull(repository, tag, time.time() - 3600)
    assert (await operator.purge("app", older_than="1d"))["tags"] == 1
    assert sorted(entry["tag"] for entry in await operator.images()) == ["noted", "young"]
    assert (await operator.purge("app", older_than="30m"))["tags"] == 1
    assert [entry["tag"] for entry in await operator.images()] == ["young"]


@pytest.mark.parametrize("dry_run", [False, True])
async def test_soft(hub, mirror, operator, dry_run):
    """A soft purge keeps everything and makes exactly one revalidation; a dry one none."""
    image = await pulled(hub, mirror, "1")
    hub.reset_counters()
    assert await operator.purge("app", soft=True, dry_run=dry_run) == counts(1)
    assert all(mirror.holds(blob.digest) for blob in [image, image.config, *image.layers])
    outcomes = [(await mirror.get(f"/v2/{APP}/manifests/1")).cache for _ in range(3)]
    assert outcomes == (["HIT"] * 3 if dry_run else ["REVALIDATED", "HIT", "HIT"])
    assert hub.count("HEAD", "manifest", status=200) == (0 if dry_run else 1)
    assert hub.count("GET", "manifest") == hub.count(kind="blob") == 0


async def test_soft_finds_a_moved_tag(hub, mirror, operator):
    """After a soft purge the next pull gets what the tag names now; in an outage what it named."""
    old = await pulled(hub, mirror, "1")
    new = hub.add_image(APP, "1", layers=[b"new"])
    await operator.purge("app:1", soft=True)
    await hub.stop()
    answer = await mirror.get(f"/v2/{APP}/manifests/1")
    assert (answer.cache, answer.body) == ("STALE", old.raw)
    await hub.start()
    await mirror.recovered()
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == new.raw


async def test_negative_answers_are_forgotten(hub, mirror, operator):
    """What upstream has not had a moment ago is asked for again after a purge."""
    hub.add_image(APP, "1")
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).status == 404
    image = hub.add_image(APP, "2")
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).status == 404
    await operator.purge("app")
    assert (await mirror.get(f"/v2/{APP}/manifests/2")).body == image.raw


async def test_purge_during_a_pull(hub, mirror, operator):
    """A pull that is under way gets every byte, held or arriving, and the image can be pulled again."""
    large = hub.add_synthetic_blob(APP, 3_000_000)
    held = os.urandom(200_000)
    image = hub.add_image(APP, "1", layers=[large, held])
    await mirror.get(f"/v2/{APP}/manifests/1")
    await mirror.get(f"/v2/{APP}/blobs/{image.layers[1].digest}")
    await mirror.idle()
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=1_000_000)
    arriving = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{large.digest}"))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    reading = mirror.store.files.open(next(f.digest for f in mirror.store.files.walk() if f.size == 200_000))
    assert (await operator.purge("app"))["tags"] == 1
    assert not mirror.holds(image.layers[1].digest)
    gate.release()
    assert (await arriving).sha256 == large.digest
    assert reading.file.read() == held
    reading.close()
    await pull(mirror, image, "1")
    assert sum(seen.body_bytes_sent for seen in hub.find(host="cdn") if seen.digest == large.digest) == large.size


async def test_purged_in_the_moment_of_its_arrival(hub, mirror, monkeypatch):
    """A manifest that a purge removes after it was stored, and before all can know who needs it, is stored once more."""
    put, removed = mirror.store.files.put, []

    def removing(digest, data, owner):
        put(digest, data, owner)
        if not removed:
            removed.append(mirror.store.files.delete(digest))

    monkeypatch.setattr(mirror.store.files, "put", removing)
    image = hub.add_image(APP, "1")
    assert (await mirror.get(TAG)).body == image.raw
    assert removed == [len(image.raw)]
    assert mirror.holds(image.digest)


async def test_effective_at_once_in_another_worker(hub, mirror, operator):
    """Another process on the same store, which had the image in memory, asks upstream from this moment on."""
    await pulled(hub, mirror, "1")
    async with MirrorUnderTest(hub, mirror.store_path) as other:
        for _ in range(2):
            assert (await other.get(f"/v2/{APP}/manifests/1")).cache == "HIT"
        new = hub.add_image(APP, "1", layers=[b"new"])
        await operator.purge("app:1")
        answer = await other.get(f"/v2/{APP}/manifests/1")
        assert (answer.cache, answer.body) == ("MISS", new.raw)


async def test_audit(hub, mirror, operator, log):
    """Every purge is one line in the log: what, by whom, and what came of it."""
    await pulled(hub, mirror, "1")
    await operator.purge("app:1", soft=True)
    await operator.delete("app:1")
    lines = [event for event in log if event["event"] == "audit"]
    assert [(line["action"], line["match"], line["soft"], line["dry_run"], line["client"]) for line in lines] == [
        ("purge", "docker.io/app:1", True, False, "127.0.0.1"),
        ("purge", "docker.io/app:1", False, False, "127.0.0.1"),
    ]
    assert [(line["tags"], line["manifests"], line["blobs"]) for line in lines] == [(1, 0, 0), (1, 1, 2)]


# ---- the token


@pytest.mark.parametrize("given", [None, "", "wrong", "s3cret\xe9", "s3cre", "s3crett"])
async def test_token_is_wanted(hub, secured, log, given):
    """Without the token nothing is told and nothing is done, but for health and metrics; the refusal is in the log."""
    image = await pulled(hub, secured, "1")
    operator = Operator(secured, given)
    for method, path in [
        ("GET", "/api/v1/images"),
        ("DELETE", f"/api/v1/images/docker.io/{APP}:1"),
        ("POST", "/api/v1/purge"),
        ("GET", "/api/v1/downloads"),
        ("GET", "/api/v1/nothing"),
    ]:
        status, answer = await operator.ask(method, path)
        assert (status, set(answer)) == (401, {"error"})
    assert secured.holds(image.digest)
    assert len([event for event in log if event["event"] == "audit" and event["action"] == "refused"]) == 5
    assert not [event for event in log if event["event"] == "audit" and "s3cret" in str(event)]
    for path in ("/healthz", "/readyz", "/metrics"):
        async with secured.session.get(f"http://127.0.0.1:{secured.admin_port}{path}") as response:
            assert response.status == 200
    assert len(await Operator(secured, "s3cret").images()) == 1


async def test_token_is_compared_in_constant_time(secured, monkeypatch):
    """How long a refusal takes tells nothing about the token: the comparison is the library's for that."""
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr("mirror.admin.senders.hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    await Operator(secured, "wrong").ask("GET", "/api/v1/images")
    assert compared == [(b"wrong", b"s3cret")]


async def test_scheme_in_any_case(hub, secured):
    """The name of the scheme is the same in any case (RFC 9110 section 11.1)."""
    reply = await ask(secured.admin_port, request("/api/v1/images", "Authorization: bearer s3cret"))
    assert reply.status == 200


# ---- bad orders


BAD = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b"[" * 50_000, "JSON"),
    (b"[]", "object"),
    (b"null", "object"),
    (b"{}", "match"),
    (b'{"match": 3}', "match"),
    (b'{"match": null}', "match"),
    (b'{"match": ""}', "match"),
    (b'{"match": "UPPER"}', "match"),
    (b'{"match": "a:b:c"}', "match"),
    (b'{"match": "\\ud800"}', "match"),
    (b'{"match": "app", "older_than": "soon"}', "older_than"),
    (b'{"match": "app", "older_than": 3}', "older_than"),
    (b'{"match": "app", "soft": 1}', "soft"),
    (b'{"match": "app", "soft": "yes"}', "soft"),
    (b'{"match": "app", "dry_run": null}', "dry_run"),
    (b'{"match": "app", "dryrun": true}', "dryrun"),
]


@pytest.mark.parametrize(("body", "named"), BAD, ids=[body[:40].decode("latin-1") for body, _ in BAD])
async def test_bad_orders(hub, mirror, operator, body, named, quiet):
    """An order that cannot be understood is refused with the key that is wrong, and nothing is done."""
    image = await pulled(hub, mirror, "1")
    status, answer = await operator.ask("POST", "/api/v1/purge", data=body)
    assert status == 400
    assert named in answer["error"]
    assert mirror.holds(image.digest)
    quiet()


async def test_order_that_is_too_long(operator):
    """No more than 64 KiB are read of an order."""
    status, answer = await operator.ask("POST", "/api/v1/purge", data=b" " * (64 << 10) + b'{"match": "x"}')
    assert (status, set(answer)) == (413, {"error"})


@pytest.mark.parametrize("name", ["UPPER", "a:b:c", "app@sha256:1", "%00", "app:%F0"])
async def test_bad_names(operator, name):
    """DELETE of what is no image is refused."""
    status, answer = await operator.delete(name)
    assert (status, set(answer)) == (400, {"error"})


async def test_names_of_what_went(hub, mirror, operator):
    """The answer names what went: tags, and manifests by digest that no tag led to, but no parts of either."""
    one = await pulled(hub, mirror, "1", platforms=["linux/amd64", "linux/arm64"])
    two = await pulled(hub, mirror, "2")
    alone = hub.add_image(APP, None, layers=[b"alone"])
    assert (await mirror.get(f"/v2/{APP}/manifests/{alone.digest}")).status == 200
    await mirror.idle()
    every = [f"docker.io/{APP}:1", f"docker.io/{APP}:2", f"docker.io/{APP}@{alone.digest}"]
    for order in ({"dry_run": True}, {"soft": True}):
        await operator.purge("app", **order)
        assert operator.purged == (every[:2] if "soft" in order else every)
    await operator.purge("app:3")
    assert operator.purged == []
    await operator.delete("app:1")
    assert operator.purged == every[:1]
    await operator.purge("app")
    assert operator.purged == every[1:]
    assert not any(mirror.holds(image.digest) for image in (one, two, alone))


# ---- the list


async def test_images(hub, mirror, operator):
    """What is held is listed with its size, its last pull, and whether it is complete."""
    whole = await pulled(hub, mirror, "whole", layers=[os.urandom(1000)])
    part = hub.add_image(APP, "part", layers=[os.urandom(1000)])
    await mirror.get(f"/v2/{APP}/manifests/part")
    mirror.usage.write(mirror.store.files, mirror.store.index)
    listed = {entry["tag"]: entry for entry in await operator.images()}
    pulled_at = listed["whole"].pop("pulled")
    assert time.time() - 60 < pulled_at <= time.time()
    assert listed["whole"] == {
        "name": f"docker.io/{APP}:whole",
        "registry": "docker.io",
        "repository": APP,
        "tag": "whole",
        "digest": whole.digest,
        "bytes": len(whole.raw) + whole.config.size + 1000,
        "complete": True,
    }
    assert (listed["part"]["complete"], listed["part"]["bytes"]) == (False, len(part.raw))


async def test_images_of_a_pattern(hub, mirror, operator):
    """The list can be narrowed down by a glob; a bad one is refused."""
    for repository in (APP, "team/tool"):
        for tag in ("1", "2"):
            await pulled(hub, mirror, tag, repository=repository)
    assert {entry["name"] for entry in await operator.images(match="app:*")} == {f"docker.io/{APP}:1", f"docker.io/{APP}:2"}
    assert {entry["name"] for entry in await operator.images(match="*:1")} == {f"docker.io/{APP}:1", "docker.io/team/tool:1"}
    assert await operator.images(match="none") == []
    status, answer = await operator.ask("GET", "/api/v1/images", params={"match": "UPPER"})
    assert (status, set(answer)) == (400, {"error"})


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_pages(hub, mirror, operator, size):
    """The pages together are the whole list, whatever its names look like."""
    names = ["team/a", "team/a-b", "team/a.b", "team/a/b", "team/a_b"]
    for repository in names:
        await pulled(hub, mirror, "1", repository=repository)
        await pulled(hub, mirror, "1.0-x", repository=repository)
    found, query = [], {}
    while True:
        _, answer = await operator.ask("GET", "/api/v1/images", params={"n": str(size), **query})
        assert len(answer["images"]) <= size
        found += [entry["name"] for entry in answer["images"]]
        if answer["next"] is None:
            break
        query = {"last": answer["next"]}
    assert sorted(found) == sorted(f"docker.io/{name}:{tag}" for name in names for tag in ("1", "1.0-x"))
    status, _ = await operator.ask("GET", "/api/v1/images", params={"n": "x"})
    assert status == 400


async def test_purge_beside_pulls(hub, mirror, operator):
    """Purging again and again while clients pull: every pull is right, and the account is right afterwards."""
    images = {tag: hub.add_image(APP, tag, layers=[os.urandom(20_000) for _ in range(3)]) for tag in "abcd"}
    done = asyncio.Event()

    async def client(tag):
        for _ in range(5):
            await pull_loosely(mirror, images[tag], tag)

    async def purger():
        count = 0
        while not done.is_set():
            await operator.purge("app")
            count += 1
        return count

    purging = asyncio.create_task(purger())
    try:
        await asyncio.gather(*(client(tag) for tag in "abcdabcd"))
    finally:
        done.set()
    assert await purging > 3
    await mirror.idle()
    assert mirror.store.quota.figures()[1] == len(list(mirror.store.files.walk()))
    assert mirror.partials() == []


async def pull_loosely(mirror, image, tag):
    assert (await mirror.get(f"/v2/{APP}/manifests/{tag}")).body == image.raw
    for blob in [image.config, *image.layers]:
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).sha256 == blob.digest
