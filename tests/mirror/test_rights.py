"""Rights between repositories and registries: what is held or arriving is no way around upstream's no."""

import asyncio
import contextlib

import pytest

from tests.fakehub import FakeHub, NoHeaders, Rule
from tests.support.mirrors import MirrorUnderTest
from tests.support.waiting import LIMIT, eventually

ONE, OTHER = "team/one", "team/other"
PRIVATE = "private.example"


@pytest.fixture
async def private_hub():
    """A second registry, which wants credentials."""
    async with FakeHub() as hub:
        hub.users = {"robot": "secret"}
        yield hub


@pytest.fixture
async def both(hub, private_hub, tmp_path):
    """A mirror of a public registry, which is the default, and of a private one."""
    (tmp_path / "password").write_text("secret\n")
    registries = {
        "docker.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host]},
        PRIVATE: {
            "upstreams": [private_hub.url],
            "token_hosts": [private_hub.token_host],
            "username": "robot",
            "password_file": str(tmp_path / "password"),
        },
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        yield mirror


def blob(repository, digest):
    return f"/v2/{PRIVATE}/{repository}/blobs/{digest}"


def manifest(repository, reference):
    return f"/v2/{PRIVATE}/{repository}/manifests/{reference}"


async def test_one_head_then_linked(private_hub, both):
    """Blob and manifest that came through one repository cost another one HEAD each, ever, and no byte."""
    image = private_hub.add_image(ONE, "1", layers=[b"content"])
    private_hub.add_image(OTHER, "1", layers=[b"content"])
    private_hub.add_manifest(OTHER, image.raw, image.media_type)
    digest = image.layers[0].digest
    await both.get(manifest(ONE, "1"))
    await both.get(blob(ONE, digest))
    await both.idle()
    private_hub.reset_counters()
    for _ in range(3):
        assert (await both.get(blob(OTHER, digest))).body == b"content"
        assert (await both.get(manifest(OTHER, image.digest))).body == image.raw
    for kind in ("blob", "manifest"):
        assert private_hub.count("HEAD", kind, repository=OTHER, status=200) == 1
        assert private_hub.count("GET", kind) == 0


async def test_many_at_once_ask_once(private_hub, both):
    """Many clients of another repository at the same moment share one HEAD."""
    digest = private_hub.add_blob(ONE, b"content")
    private_hub.add_blob(OTHER, b"content")
    await both.get(blob(ONE, digest))
    await both.idle()
    private_hub.reset_counters()
    answers = await asyncio.gather(*(both.get(blob(OTHER, digest)) for _ in range(10)))
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"content")}
    assert private_hub.count("HEAD", "blob", repository=OTHER, status=200) == 1


async def test_no_second_download(private_hub, both):
    """The same layers under other tags and in other repositories are fetched once."""
    layers = [b"a" * 5000, b"b" * 5000]
    for repository in (ONE, OTHER):
        for tag in ("1", "2"):
            image = private_hub.add_image(repository, tag, layers=layers)
            assert (await both.get(manifest(repository, tag))).body == image.raw
            for layer in image.layers:
                assert (await both.get(blob(repository, layer.digest))).sha256 == layer.digest
            await both.idle()
    for layer in image.layers:
        assert len([seen for seen in private_hub.find(host="cdn") if seen.digest == layer.digest]) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_not_through_a_public_name(hub, private_hub, both, method, kind):
    """A digest that is held by way of a private registry cannot be read through a public one."""
    image = private_hub.add_image(ONE, "1", layers=[b"secret"])
    hub.add_image(ONE, "1", layers=[b"public"])
    digest = image.digest if kind == "manifests" else image.layers[0].digest
    assert (await both.get(f"/v2/{PRIVATE}/{ONE}/{kind}/{digest}")).status == 200
    await both.idle()
    for path in (f"/v2/{ONE}/{kind}/{digest}", f"/v2/{ONE}/{kind}/{digest}?ns=docker.io", f"/v2/library/none/{kind}/{digest}"):
        answer = await both.get(path, method)
        assert answer.status == 404
        assert b"secret" not in answer.body
    assert (await both.get(f"/v2/{PRIVATE}/{ONE}/{kind}/{digest}", method)).cache == "HIT"


@pytest.mark.parametrize("other", ["repository", "registry"])
async def test_what_is_arriving_needs_a_grant(hub, private_hub, both, other):
    """A blob that is just arriving is not handed to a repository that upstream refuses; who is granted it joins."""
    layer = private_hub.add_synthetic_blob(ONE, 500_000)
    private_hub.add_image(OTHER, "1")
    private_hub.add_synthetic_blob("team/third", 500_000)
    hub.add_image(OTHER, "1")
    gate = private_hub.gate(Rule(kind="blob", host="cdn"), after=200_000)
    arriving = asyncio.create_task(both.get(blob(ONE, layer.digest)))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    refused = blob(OTHER, layer.digest) if other == "repository" else f"/v2/{OTHER}/blobs/{layer.digest}"
    for method in ("GET", "HEAD"):
        answer = await both.get(refused, method)
        assert answer.status == 404
    joined = asyncio.create_task(both.get(blob("team/third", layer.digest)))
    await private_hub.wait_for(method="HEAD", kind="blob", repository="team/third", status=200)
    gate.release()
    assert (await arriving).sha256 == (await joined).sha256 == layer.digest
    assert (await joined).cache in ("JOINED", "HIT")
    assert private_hub.count(host="cdn", kind="blob") == 1


async def test_what_was_interrupted_needs_a_grant(private_hub, both):
    """The rest of an interrupted download on disk is not served to a repository that upstream refuses, nor completed for it."""
    layer = private_hub.add_synthetic_blob(ONE, 3_000_000)
    private_hub.add_image(OTHER, "1")
    gate = private_hub.gate(Rule(kind="blob", host="cdn"), after=2_000_000)
    arriving = asyncio.create_task(both.get(blob(ONE, layer.digest)))
    await eventually(lambda: gate.reached.is_set() and both.download(layer.digest).received >= 2_000_000)
    arriving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await arriving
    await both.downloads.close()
    both.downloads._closing = False
    assert both.partials()
    private_hub.reset_counters()
    gate.release()
    for _ in range(2):
        assert (await both.get(blob(OTHER, layer.digest))).status == 404
    assert private_hub.count("GET", "blob") == 0
    assert (await both.get(blob(ONE, layer.digest))).sha256 == layer.digest
    assert sum(seen.body_bytes_sent for seen in private_hub.find(host="cdn")) < 1_500_000


async def test_grant_is_not_given_by_a_failed_question(private_hub, both):
    """If upstream cannot be asked, the answer is an error without a byte, and the next question counts."""
    digest = private_hub.add_blob(ONE, b"content")
    private_hub.add_blob(OTHER, b"content")
    await both.get(blob(ONE, digest))
    await both.idle()
    await private_hub.stop()
    answer = await both.get(blob(OTHER, digest))
    assert (answer.status, b"content" in answer.body) == (503, False)
    await private_hub.start()
    await both.recovered()
    assert (await both.get(blob(OTHER, digest))).body == b"content"


async def test_lost_index_gives_no_rights(hub, private_hub, both):
    """Without the index every right is asked for again, the first repository's too, and nothing is fetched again."""
    digest = private_hub.add_blob(ONE, b"content")
    private_hub.add_image(OTHER, "1")
    hub.add_image(ONE, "1")
    await both.get(blob(ONE, digest))
    await both.idle()
    index = both.store.index
    for table in index.tables.values():
        table.delete_many(list(table.keys()))
    both.store.generation.change()
    private_hub.reset_counters()
    for path in (blob(OTHER, digest), f"/v2/{ONE}/blobs/{digest}"):
        assert (await both.get(path)).status == 404
    assert (await both.get(blob(ONE, digest))).cache == "HIT"
    assert private_hub.count("GET", "blob") == 0


async def test_joined_before_the_first_says_no(private_hub, both, all_in):
    """Whoever has not been granted a blob does not get it by asking while somebody else's download has not begun."""
    digest = private_hub.add_blob(ONE, b"content")
    private_hub.add_image(OTHER, "1")
    held = NoHeaders()
    private_hub.script(Rule(kind="blob", method="GET", repository=ONE, host="registry"), held)
    first = asyncio.create_task(both.get(blob(ONE, digest)))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    assert (await both.get(blob(OTHER, digest))).status == 404
    held.release()
    assert (await first).body == b"content"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_not_across_public_registries(hub, tmp_path, kind, method):
    """What came from one registry is not served under the name of another, although neither is used with an account."""
    async with FakeHub() as second:
        image = second.add_image("team/app", "1", layers=[b"theirs"])
        hub.add_image("team/app", "1", layers=[b"ours"])
        registries = {
            name: {"upstreams": [one.url], "token_hosts": [one.token_host]}
            for name, one in (("docker.io", hub), ("ghcr.io", second))
        }
        digest = image.digest if kind == "manifests" else image.layers[0].digest
        async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
            assert (await mirror.get(f"/v2/ghcr.io/team/app/{kind}/{digest}")).status == 200
            await mirror.idle()
            for path in (f"/v2/team/app/{kind}/{digest}", f"/v2/team/app/{kind}/{digest}?ns=docker.io"):
                assert (await mirror.get(path, method)).status == 404
            assert (await mirror.get(f"/v2/ghcr.io/team/app/{kind}/{digest}", method)).cache == "HIT"


async def test_a_stranger_names_what_is_private(hub, private_hub, both):
    """A manifest in a public registry that names a layer of a private one does not get it out; upstream is asked."""
    image = private_hub.add_image(ONE, "1", layers=[b"secret"])
    digest = image.layers[0].digest
    await both.get(blob(ONE, digest))
    await both.idle()
    hub.add_image("evil/app", "1", layers=[b"secret"])
    hub.delete_blob("evil/app", digest)
    assert (await both.get("/v2/evil/app/manifests/1")).status == 200
    assert (await both.get(f"/v2/evil/app/blobs/{digest}")).status == 404
    hub.add_blob("evil/honest", b"secret")
    answer = await both.get(f"/v2/evil/honest/blobs/{digest}")
    assert (answer.cache, answer.body) == ("HIT", b"secret")
    assert hub.count("GET", "blob") == 0


async def test_an_account_that_comes_later(hub, tmp_path):
    """What a manifest alone has granted in a public registry is asked for once the registry is used with an account."""
    for name in (ONE, OTHER):
        image = hub.add_image(name, "1", layers=[b"base"])
    digest = image.layers[0].digest
    upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    (tmp_path / "password").write_text("secret\n")
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for name in (ONE, OTHER):
            await mirror.get(f"/v2/{name}/manifests/1")
            assert (await mirror.get(f"/v2/{name}/blobs/{digest}")).status == 200
            await mirror.idle()
        hub.users = {"robot": "secret"}
        account = {"username": "robot", "password_file": str(tmp_path / "password")}
        await mirror.reload(registries={"docker.io": {**upstream, **account}})
        hub.private(OTHER, ["somebody"])
        assert (await mirror.get(f"/v2/{OTHER}/blobs/{digest}")).status == 404
        assert (await mirror.get(f"/v2/{ONE}/blobs/{digest}")).cache == "HIT"
