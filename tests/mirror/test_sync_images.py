"""Configured images: which tags they stand for, what is brought of them, and that they stay."""

import asyncio
import json
import os

import pytest

from tests.fakehub import OCI_INDEX, OCI_MANIFEST, Rule, Status
from tests.fakehub.catalog import Repository
from tests.mirror.syncing import Orders, named, pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually

SOON = "200ms"
AMD, ARM = "linux/amd64", "linux/arm64"
LAYER = "application/vnd.oci.image.layer.v1.tar"

pytestmark = pytest.mark.usefixtures("quick_sync")


@pytest.fixture
def orders(mirror):
    return Orders(mirror)


@pytest.fixture
def configure(mirror, orders):
    """Configures images and waits for the end of the run that this makes."""

    async def configure(*images, interval="1h", **sync):
        before = (await orders.state())["last"]["schedule"]
        await mirror.reload(sync={"interval": interval, "images": list(images), **sync})
        state = await orders.until(lambda state: state["last"]["schedule"] not in (None, before) and not state["running"])
        return state["last"]["schedule"]

    return configure


def kept(mirror, repository=APP):
    """The tags that are kept of a repository."""
    prefix = f"docker.io/{repository}:"
    return sorted(name.removeprefix(prefix) for name in mirror.store.jobs.kept_images() if name.startswith(prefix))


def held(mirror, hub):
    """The tags of which something is known here."""
    return sorted(tag for tag in hub.repositories[APP].tags if named(mirror, tag))


def add(hub, *tags):
    return {tag: hub.add_image(APP, tag) for tag in tags}


def index(hub, entries, tag=None):
    """An index of any shape: descriptors as they are given."""
    return hub.add_manifest(
        APP, json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode(), OCI_INDEX, tag
    )


def entry(image_or_digest, raw=None, media_type=OCI_MANIFEST, platform=None, **more):
    digest = getattr(image_or_digest, "digest", image_or_digest)
    size = len(raw if raw is not None else image_or_digest.raw)
    named = {"platform": dict(zip(("os", "architecture"), platform.split("/"), strict=True))} if platform else {}
    return {"mediaType": media_type, "digest": digest, "size": size, **named, **more}


# ---- which tags


@pytest.mark.parametrize(
    ("image", "tags"),
    [
        pytest.param("app:1.0", ["1.0"], id="a tag"),
        pytest.param("docker.io/library/app:1.*", ["1.0", "1.0-alpine", "1.2", "1.10"], id="a glob"),
        pytest.param({"image": "app", "newest": 2}, ["1.10", "2.0"], id="newest"),
        pytest.param({"image": "app", "versions": ">=1.2 <2"}, ["1.10", "1.2"], id="versions"),
        pytest.param({"image": "app:*-alpine", "newest": 1}, ["1.0-alpine"], id="variant"),
        pytest.param({"image": "app:1.*", "versions": "<2", "newest": 1}, ["1.10"], id="all of them"),
        pytest.param("app", ["latest"], id="latest"),
    ],
)
async def test_which_tags(hub, mirror, configure, image, tags):
    """Tags, globs, versions and the newest ones stand for what they say, and come whole."""
    images = add(hub, "1.0", "1.2", "1.10", "1.0-alpine", "2.0", "2.0-rc1", "latest")
    done = await configure(image)
    assert (done["result"], done["tags"]) == ("completed", {"moved": len(tags)})
    assert held(mirror, hub) == kept(mirror) == sorted(tags)
    hub.reset_counters()
    for tag in tags:
        assert (await pull(mirror, APP, tag))[0] == images[tag].digest
    assert hub.count() == 0


async def test_a_digest(hub, mirror, configure):
    """A digest is brought once, and asks upstream nothing from then on."""
    image = hub.add_image(APP, None)
    done = await configure(f"app@{image.digest}", interval=SOON)
    assert done["tags"] in ({"moved": 1}, {"unchanged": 1})
    hub.reset_counters()
    runs = await mirror.metric("sync_runs_total", result="completed")
    await eventually(lambda: mirror.metric("sync_runs_total", result="completed"), holds=lambda seen: seen >= runs + 2)
    assert hub.count() == 0
    assert (await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")).cache == "HIT"


async def test_new_tags_are_picked_up(hub, mirror, configure):
    """A new tag that matches comes with the next run; one that is no longer among the newest is let go, and stays held."""
    add(hub, "1.0", "1.1", "1.2")
    await configure({"image": "app:1.*", "newest": 2}, interval=SOON)
    assert kept(mirror) == ["1.1", "1.2"]
    add(hub, "1.3", "2.0")
    await eventually(lambda: kept(mirror) == ["1.2", "1.3"] and named(mirror, "1.3"), "the new one")
    assert held(mirror, hub) == ["1.1", "1.2", "1.3"]


async def test_list_in_pages(hub, mirror, configure):
    """A list of tags in many pages is read to its end, once for all entries of a repository."""
    hub.page_size = 7
    add(hub, *(f"1.{number}" for number in range(30)))
    done = await configure({"image": "app:1.*", "newest": 3}, "app:1.0*")
    assert kept(mirror) == ["1.0", "1.27", "1.28", "1.29"]
    assert done["result"] == "completed"
    assert hub.count("GET", "tags", status=200) == 5


@pytest.mark.parametrize("status", [404, 403, 500, 429])
async def test_list_fails(hub, mirror, configure, orders, status):
    """While upstream does not list tags, what was kept stays kept, and the run says why it is not in sync."""
    add(hub, "1.0", "1.1")
    await configure("app:1.*", interval=SOON)
    hub.script(Rule(kind="tags", times=None), Status(status))
    wanted = "limited" if status == 429 else "failed"
    state = await orders.until(lambda state: state["last"]["schedule"]["result"] == wanted)
    assert kept(mirror) == ["1.0", "1.1"]
    assert f"docker.io/{APP}:1.*" in state["last"]["schedule"]["problems"]


async def test_list_that_does_not_end(hub, mirror, configure):
    """A list whose pages never end is given up."""
    add(hub, "1.0")

    def link(target):
        return {"Link": f'<{target}>; rel="next"', "Content-Type": "application/json"}

    body = json.dumps({"name": APP, "tags": ["1.0"]}).encode()
    hub.script(Rule(kind="tags", times=None, skip=1), Status(200, link(f"/v2/{APP}/tags/list?last=a"), body))
    hub.script(Rule(kind="tags"), Status(200, link(f"/v2/{APP}/tags/list?last=b"), body))
    done = await configure("app:1.*")
    assert done["result"] == "failed"
    assert "does not end" in done["problems"][f"docker.io/{APP}:1.*"]
    assert hub.count("GET", "tags") <= 210


async def test_list_without_measure(hub, mirror, configure):
    """A list of more tags than any repository has is given up, too."""
    add(hub, "1.0")
    body = json.dumps({"name": APP, "tags": [f"{number}" for number in range(200_001)]}).encode()
    hub.script(Rule(kind="tags"), Status(200, {"Content-Type": "application/json"}, body))
    done = await configure("app:1.*")
    assert "more than 200000 tags" in done["problems"][f"docker.io/{APP}:1.*"]


# ---- what of them


async def test_platforms(hub, mirror, configure):
    """Of an index come the platforms that the entry names, else those of sync.platforms; of two entries, both."""
    one, two, three = (hub.add_image(APP, tag, platforms=[AMD, ARM, "linux/s390x"]) for tag in ("1", "2", "3"))
    await configure({"image": "app:1", "platforms": [ARM]}, "app:2", {"image": "app:3", "platforms": [ARM]}, "app:3")

    def which(image):
        return {platform for platform, child in image.children.items() if mirror.holds(child.digest)}

    assert (which(one), which(two), which(three)) == ({ARM}, {AMD}, {AMD, ARM})


async def test_more_platforms(hub, mirror, configure):
    """Another platform in the configuration is brought by the run that follows."""
    image = hub.add_image(APP, "1", platforms=[AMD, ARM])
    await configure("app:1")
    assert not mirror.holds(image.children[ARM].digest)
    await configure("app:1", platforms=[AMD, ARM])
    assert mirror.holds(image.children[ARM].digest)


async def test_round_that_is_gone_on_with(hub, mirror, orders):
    """A round over configured images that a limit has cut is gone on with, without asking again about what is there."""
    images = add(hub, *(f"{number}" for number in range(12)))
    entry = hub.script(Rule(kind="manifest", method="HEAD", times=None, skip=6), Status(429, {"Retry-After": "1"}))
    await mirror.reload(sync={"interval": SOON, "images": [f"app:{tag}" for tag in images]})
    state = await orders.until(lambda state: (state["last"]["schedule"] or {}).get("result") == "limited")
    # Of those that upstream has answered for, some may have met the limit with their GET.
    first = {image["image"].rpartition(":")[2] for image in state["images"] if image["result"] == "moved"}
    assert 0 < len(first) <= 6
    entry.remove()
    hub.reset_counters()
    await eventually(lambda: held(mirror, hub) == sorted(images), "the rest")
    rest = [seen.reference for seen in hub.find("HEAD", "manifest", status=200)][: 12 - len(first)]
    assert set(rest) == set(images) - first


async def test_nested_index(hub, mirror, configure):
    """An index of indexes is followed to the manifests of the platform, even where one of them has none for it."""
    images = {platform: hub.add_image(APP, None, [platform.encode()]) for platform in (AMD, ARM)}
    below = {}
    for platform, image in images.items():
        digest = index(hub, [entry(image, platform=platform)])
        below[digest] = hub.repositories[APP].manifests[digest].raw
    index(hub, [entry(digest, raw, OCI_INDEX) for digest, raw in below.items()], "1")
    done = await configure("app:1")
    assert done["result"] == "completed"
    assert mirror.holds(images[AMD].layers[0].digest)
    assert not mirror.holds(images[ARM].layers[0].digest)


async def test_index_without_platforms(hub, mirror, configure):
    """Of an index that is no choice between platforms everything comes, each manifest once."""
    images = [hub.add_image(APP, None, [b"%d" % number]) for number in range(3)]
    index(hub, [entry(image) for image in images] * 5, "1")
    done = await configure("app:1")
    assert done["result"] == "completed"
    assert all(mirror.holds(image.layers[0].digest) for image in images)
    assert hub.count("GET", "manifest", status=200) == 4
    assert done["bytes_held"] == 0


async def test_attestations_are_left(hub, mirror, configure):
    """What BuildKit attaches to an image, under the platform unknown/unknown, is not fetched."""
    image, attestation = hub.add_image(APP, None, [b"image"]), hub.add_image(APP, None, [b"attestation"])
    index(hub, [entry(image, platform=AMD), entry(attestation, platform="unknown/unknown")], "1")
    assert (await configure("app:1"))["result"] == "completed"
    assert mirror.holds(image.layers[0].digest)
    assert not mirror.holds(attestation.digest)


async def test_foreign_layers_are_left(hub, mirror, configure):
    """Layers that live elsewhere are neither asked for nor missed."""
    image = hub.add_image(APP, None, [b"own"])
    manifest = json.loads(image.raw)
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": "sha256:" + "0" * 64,
        "size": 5,
        "urls": ["https://example.com/layer"],
    }
    manifest["layers"].append(foreign)
    hub.add_manifest(APP, json.dumps(manifest).encode(), OCI_MANIFEST, "1")
    done = await configure("app:1")
    assert (done["result"], done["tags"]) == ("completed", {"moved": 1})
    assert hub.count(reference=foreign["digest"]) == 0


async def test_schema_1(hub, mirror, orders):
    """An image of schema 1 is refused in so many words."""
    raw = json.dumps({"schemaVersion": 1, "name": APP, "tag": "1", "fsLayers": [], "signatures": []}).encode()
    hub.add_manifest(APP, raw, "application/vnd.docker.distribution.manifest.v1+prettyjws", "1")
    done = await orders.warm("app:1")
    assert done["result"] == "failed"
    assert "schema 1" in done["problems"][f"docker.io/{APP}:1"]


async def test_hostile_index(hub, mirror, orders):
    """An index that leads to the same manifests in very many ways costs each of them once."""
    manifests = hub.repositories.setdefault(APP, Repository()).manifests
    level = [hub.add_image(APP, None, [b"%d" % number]).digest for number in range(12)]
    kind = OCI_MANIFEST
    for depth in range(3):
        below = [entry(digest, manifests[digest].raw, kind) for digest in level]
        # No two of the same bytes.
        level, kind = [index(hub, [*below, below[number], *below[:depth]]) for number in range(12)], OCI_INDEX
    index(hub, [entry(digest, manifests[digest].raw, OCI_INDEX) for digest in level], "1")
    async with asyncio.timeout(LIMIT):
        done = await orders.warm("app:1")
    assert done["result"] == "completed"
    assert hub.count("GET", "manifest", status=200) == 4 * 12 + 1
    assert done["bytes_held"] == 0


async def test_huge_index(hub, mirror, orders):
    """An index of thousands of manifests without platforms is refused; with platforms only what is wanted counts."""
    image = hub.add_image(APP, None, [b"one"])
    many = [{**entry(image), "digest": f"sha256:{number:064x}"} for number in range(2000)]
    index(hub, many, "all")
    index(hub, [entry(image, platform=AMD), *({**other, "platform": {"os": "x", "architecture": "y"}} for other in many)], "one")
    done = await orders.warm("app:all", "app:one")
    assert done["tags"] == {"failed": 1, "moved": 1}
    assert "more than 1000 manifests" in done["problems"][f"docker.io/{APP}:all"]
    assert hub.count("GET", "manifest", status=200) == 3


# ---- rights


async def test_private_registry(hub, tmp_path):
    """With an account private images come, too, and what is brought of one repository is not given away by another one."""
    hub.users = {"someone": "secret"}
    password = tmp_path / "password"
    password.write_text("secret")
    registry = {
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
        "username": "someone",
        "password_file": str(password),
    }
    private = hub.add_image("team/app", "1", [b"private"])
    hub.private("team/app", ["someone"])
    other = hub.add_image("team/other", "1", [b"other"])
    settings = {"registries": {"docker.io": registry}, "sync": {"interval": "1h", "images": ["team/app:1"]}}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        orders = Orders(mirror)
        await orders.until(lambda state: (state["last"]["schedule"] or {}).get("result") == "completed")
        hub.reset_counters()
        await pull(mirror, "team/app", "1")
        assert hub.count("GET", "manifest") == hub.count("GET", "blob") == 0
        # Upstream says that the other one has no such layer.
        answer = await mirror.get(f"/v2/team/other/blobs/{private.layers[0].digest}")
        assert answer.status == 404
        assert (await orders.warm("team/other:1"))["result"] == "completed"
        assert mirror.holds(other.layers[0].digest)


async def test_wrong_account(hub, tmp_path):
    """What the account may not see is said to be not there, by its name, and nothing is kept of it."""
    hub.users = {"someone": "secret", "else": "secret"}
    hub.add_image("team/app", "1")
    hub.private("team/app", ["else"])
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        done = await Orders(mirror).warm("team/app:1")
        assert done["result"] == "failed"
        assert "docker.io/team/app:1" in done["problems"]
        assert named(mirror, "1", "team/app") is None


# ---- staying


async def test_stays_under_pressure(hub, tmp_path, blobs_only):
    """A configured image outlives everything else that goes through a small store, and no longer when it is not configured."""
    storage = {"max_size": "3MiB", "scrub_interval": "0"}
    image = hub.add_image(APP, "kept", [os.urandom(300_000)])
    async with MirrorUnderTest(hub, tmp_path / "store", storage=storage) as mirror:
        orders = Orders(mirror)
        await mirror.reload(sync={"interval": "1h", "images": ["app:kept"]})
        await orders.until(lambda state: (state["last"]["schedule"] or {}).get("result") == "completed")

        async def through(first):
            for path in [image.digest, image.layers[0].digest]:
                os.utime(mirror.blob_path(path), (1, 1))
            for number in range(first, first + 10):
                hub.add_image(APP, f"{number}", [os.urandom(600_000)])
                await pull(mirror, APP, f"{number}")

        await through(0)
        assert mirror.holds(image.layers[0].digest)
        await mirror.reload(sync={"interval": "1h", "images": []})
        await eventually(lambda: not mirror.store.jobs.kept_images(), "no pins")
        await through(10)
        assert not mirror.holds(image.layers[0].digest)


async def test_configured_image_that_does_not_exist(hub, mirror, configure, log):
    """An image that is to be kept and that upstream does not have is no success: the run, its state and the log name it."""
    add(hub, "1")
    last = await configure("app:1", "app:nope")
    assert (last["result"], last["tags"]) == ("failed", {"moved": 1, "gone": 1})
    assert list(last["problems"]) == ["docker.io/library/app:nope"]
    assert [event["image"] for event in log if event["event"] == "sync_failed"] == ["docker.io/library/app:nope"]
    assert await mirror.metric("sync_last_success_timestamp_seconds") == 0


async def test_configured_and_not_there(hub, tmp_path):
    """A configured image that upstream never had is in the list of results, until it is configured no more."""
    async with MirrorUnderTest(hub, tmp_path / "store", sync={"images": ["app:none"]}) as mirror:
        orders = Orders(mirror)
        state = await orders.until(lambda state: state["last"]["schedule"])
        assert [(image["image"], image["result"]) for image in state["images"]] == [(f"docker.io/{APP}:none", "gone")]
        await mirror.reload(sync={"images": ["app:1"]})
        await orders.until(lambda state: [image["image"] for image in state["images"]] == [f"docker.io/{APP}:1"])
