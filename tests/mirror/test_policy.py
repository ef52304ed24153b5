"""Policies of registries, end to end: what is refused, by which rule, and that upstream hears nothing of it."""

import json
import shutil

import pytest

from tests.fakehub import Rule, Status
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import ABSENT
from tests.support.waiting import eventually

ALLOW = "allow has no rule for it"


@pytest.fixture
def governed(hub, tmp_path):
    """Makes mirrors of the fake Hub with rules, over one and the same store."""

    def make(**rules):
        registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], **rules}
        return MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": registry})

    return make


async def assert_denied(mirror, path, rule):
    for method in ("GET", "HEAD", "GET"):
        answer = await mirror.get(path, method)
        assert answer.status == 403
        if method == "GET":
            (error,) = json.loads(answer.body)["errors"]
            assert error["code"] == "DENIED"
            assert rule in error["message"]
            assert rule in error["detail"]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("evil/app/manifests/1", ALLOW),
        (f"evil/app/manifests/{ABSENT}", ALLOW),
        (f"evil/app/blobs/{ABSENT}", ALLOW),
        (f"evil/app/referrers/{ABSENT}", ALLOW),
        ("evil/app/tags/list", ALLOW),
        ("bitnami/redis/manifests/2.0", ALLOW),
        ("secret/manifests/1", "deny: secret"),
        ("library/secret/manifests/1", "deny: secret"),
        (f"library/secret/blobs/{ABSENT}", "deny: secret"),
        ("app/manifests/latest", "deny: */*:latest"),
        ("docker.io/library/app/manifests/latest", "deny: */*:latest"),
        ("library/app/manifests/latest?ns=docker.io", "deny: */*:latest"),
        ("library/%61pp/manifests/latest", "deny: */*:latest"),
    ],
)
async def test_refused_without_a_word_to_upstream(hub, governed, path, rule):
    """What the rules exclude is 403 DENIED with the rule that spoke, and upstream is not even connected to."""
    for name in ("evil/app", "bitnami/redis", "library/secret", "library/app"):
        hub.add_image(name, "latest")
    async with governed(allow=["library/*", "bitnami/*:1.*"], deny=["secret", "*/*:latest"]) as mirror:
        await assert_denied(mirror, f"/v2/{path}", rule)
        assert sum(hub.accepted.values()) == 0
        assert await mirror.metric("refused_total", reason="policy") == 3
        assert await mirror.metric("requests_total", registry="docker.io", status="403") == 3


async def test_allowed(hub, governed):
    """What the rules cover is pulled whole: by tag, by digest, its blobs and the lists."""
    image = hub.add_image("bitnami/redis", "1.2")
    async with governed(allow=["library/*", "bitnami/*:1.*"], deny=["*/*:latest"]) as mirror:
        base = "/v2/bitnami/redis"
        for _ in range(2):
            assert (await mirror.get(f"{base}/manifests/1.2")).body == image.raw
            assert (await mirror.get(f"{base}/manifests/{image.digest}")).body == image.raw
            assert (await mirror.get(f"{base}/blobs/{image.layers[0].digest}")).body == image.layers[0].data
            assert (await mirror.get(f"{base}/tags/list")).status == 200
        assert await mirror.metric("refused_total", reason="policy") == 0


async def test_digest_of_a_refused_tag(hub, governed):
    """What only a refused tag is known to name is refused by its digest, until a tag that is allowed is found to name it."""
    image = hub.add_image("library/app", "latest")
    hub.move_tag("library/app", "1", image.digest)
    path = f"/v2/library/app/manifests/{image.digest}"
    async with governed() as mirror:
        assert (await mirror.get("/v2/library/app/manifests/latest")).status == 200
    async with governed(deny=["*/*:latest"]) as mirror:
        await assert_denied(mirror, path, "deny: */*:latest")
        assert (await mirror.get("/v2/library/app/manifests/1")).status == 200
        assert (await mirror.get(path)).body == image.raw


async def test_held_content_of_a_refused_repository(hub, governed):
    """What was pulled before the rule is not served any more."""
    image = hub.add_image("library/app", "1")
    layer = image.layers[0].digest
    async with governed() as mirror:
        assert (await mirror.get("/v2/library/app/manifests/1")).status == 200
        assert (await mirror.get(f"/v2/library/app/blobs/{layer}")).status == 200
        await mirror.idle()
    async with governed(deny=["library/app"]) as mirror:
        for rest in ("manifests/1", f"manifests/{image.digest}", f"blobs/{layer}", "tags/list"):
            await assert_denied(mirror, f"/v2/library/app/{rest}", "deny: library/app")


async def test_rules_are_each_registrys_own(hub, tmp_path):
    """A rule of one registry says nothing about the same repository of another."""
    image = hub.add_image("team/app", "1")
    upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    registries = {"docker.io": {**upstream, "deny": ["team/*"]}, "other.example": upstream}
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        assert (await mirror.get("/v2/team/app/manifests/1?ns=other.example")).body == image.raw
        assert (await mirror.get("/v2/team/app/manifests/1")).status == 403


async def test_reload_changes_the_rules(hub, governed):
    """A reload refuses what was served from memory a moment ago, and the next one serves it again."""
    image = hub.add_image("library/app", "1")
    path = "/v2/library/app/manifests/1"
    async with governed() as mirror:
        for rules, status in (((), 200), (("library/*",), 403), ((), 200)):
            registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "deny": list(rules)}
            await mirror.reload(registries={"docker.io": registry})
            for _ in range(3):
                answer = await mirror.get(path)
                assert answer.status == status
                assert status == 403 or answer.body == image.raw


# ---- digests


APP, OTHER = "library/app", "library/other"


def denies(*digests):
    return [f"{APP}@{digest}" for digest in digests]


async def test_a_denied_digest_under_every_name(hub, tmp_path):
    """A digest that a rule names is refused by digest and by tag, in every repository and registry, as manifest and as blob."""
    image = hub.add_image(APP, "1", layers=[b"bad"])
    hub.add_manifest(OTHER, image.raw, image.media_type, "2")
    upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    registries = {"docker.io": {**upstream, "deny": denies(image.digest)}, "other.example": upstream}
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        for path in (
            f"{APP}/manifests/{image.digest}",
            f"{OTHER}/manifests/{image.digest}",
            f"{OTHER}/manifests/{image.digest}?ns=other.example",
            f"invented/app/manifests/{image.digest}",
            f"{APP}/blobs/{image.digest}",
            f"{APP}/referrers/{image.digest}",
        ):
            await assert_denied(mirror, f"/v2/{path}", f"deny: {APP}@{image.digest}")
        assert sum(hub.accepted.values()) == 0
        for path in (f"{APP}/manifests/1", f"{OTHER}/manifests/2", f"{OTHER}/manifests/2?ns=other.example"):
            await assert_denied(mirror, f"/v2/{path}", f"deny: {APP}@{image.digest}")
        assert hub.count("GET", "manifest") == 0


async def test_a_held_image_is_denied(hub, governed):
    """What was pulled before its digest was denied is refused by all its names, and so are layers that nothing else names."""
    image = hub.add_image(APP, "1", layers=[b"base", b"bad"])
    good = hub.add_image(APP, "2", layers=[b"base", b"good"])
    base, bad = (layer.digest for layer in image.layers)
    async with governed() as mirror:
        for path in ("manifests/1", "manifests/2", f"blobs/{base}", f"blobs/{bad}", f"blobs/{image.config.digest}"):
            assert (await mirror.get(f"/v2/{APP}/{path}")).status == 200
        await mirror.idle()
    async with governed(deny=denies(image.digest)) as mirror:
        for path in ("manifests/1", f"manifests/{image.digest}", f"blobs/{bad}", f"blobs/{image.config.digest}"):
            await assert_denied(mirror, f"/v2/{APP}/{path}", f"deny: {APP}@{image.digest}")
        for path in ("manifests/2", f"manifests/{good.digest}", f"blobs/{base}"):
            for method in ("HEAD", "GET"):
                assert (await mirror.get(f"/v2/{APP}/{path}", method)).status == 200
        await hub.stop()
        await assert_denied(mirror, f"/v2/{APP}/manifests/1", f"deny: {APP}@{image.digest}")


async def test_a_store_of_an_earlier_version(hub, governed, tmp_path):
    """Where it was not recorded what manifests name, it is soon after the start, and rules hold for layers, too."""
    image = hub.add_image(APP, "1", layers=[b"bad"])
    async with governed() as mirror:
        for path in ("manifests/1", f"blobs/{image.layers[0].digest}"):
            assert (await mirror.get(f"/v2/{APP}/{path}")).status == 200
        await mirror.idle()
    shutil.rmtree(tmp_path / "store" / "index" / "parts")
    async with governed(deny=denies(image.digest)) as mirror:
        await eventually(lambda: mirror.store.index.parts.is_complete, "the parts of all manifests")
        await assert_denied(mirror, f"/v2/{APP}/blobs/{image.layers[0].digest}", f"deny: {APP}@{image.digest}")


async def test_a_denied_layer(hub, governed):
    """A layer can be denied by itself; nothing fetches it, and the rest of its image can be pulled."""
    image = hub.add_image(APP, "1", layers=[b"good", b"bad"])
    good, bad = (layer.digest for layer in image.layers)
    rules = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "deny": denies(bad)}
    async with governed(deny=denies(bad)) as mirror:
        await mirror.reload(registries={"docker.io": rules}, downloads={"prefetch": True})
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        assert (await mirror.get(f"/v2/{APP}/blobs/{good}")).body == b"good"
        await assert_denied(mirror, f"/v2/{APP}/blobs/{bad}", f"deny: {APP}@{bad}")
        await assert_denied(mirror, f"/v2/{OTHER}/blobs/{bad}", f"deny: {APP}@{bad}")
        await mirror.idle()
        assert not hub.find(kind="blob", reference=bad)


async def test_parts_of_a_refused_tag(hub, governed):
    """What only a refused tag leads to is refused, platforms and layers, but not where another name leads to it."""
    for repository in (APP, OTHER):
        image = hub.add_image(repository, "latest", layers=[b"layer"], platforms=["linux/amd64"])
    child, layer = hub.add_image(APP, None, layers=[b"layer", b"more"]), image.layers[0].digest
    index = hub.repositories[APP].tags["latest"]
    platform = json.loads(hub.repositories[APP].manifests[index].raw)["manifests"][0]["digest"]
    hub.move_tag(OTHER, "1", hub.repositories[OTHER].tags["latest"])
    async with governed() as mirror:
        for path in (f"{APP}/manifests/latest", f"{APP}/manifests/{platform}", f"{APP}/blobs/{layer}", f"{OTHER}/manifests/1"):
            assert (await mirror.get(f"/v2/{path}")).status == 200
        await mirror.idle()
    async with governed(deny=["*/*:latest"]) as mirror:
        for path in (f"manifests/{index}", f"manifests/{platform}", f"blobs/{layer}"):
            await assert_denied(mirror, f"/v2/{APP}/{path}", "deny: */*:latest")
        # Nothing is known there that would name it; upstream has it, and says so.
        assert (await mirror.get(f"/v2/{OTHER}/blobs/{layer}")).body == b"layer"
        # Another manifest that is not refused speaks for the layer.
        assert (await mirror.get(f"/v2/{APP}/manifests/{child.digest}")).status == 200
        assert (await mirror.get(f"/v2/{APP}/blobs/{layer}")).body == b"layer"


async def test_another_name_is_no_way_round(hub, governed):
    """What is held of a refused repository is not served through another one, unless upstream has it there."""
    image = hub.add_image(APP, "1", layers=[b"content"])
    hub.add_image(OTHER, "1", layers=[b"else"])
    layer = image.layers[0].digest
    async with governed() as mirror:
        for path in ("manifests/1", f"blobs/{layer}"):
            assert (await mirror.get(f"/v2/{APP}/{path}")).status == 200
        await mirror.idle()
    async with governed(deny=[APP]) as mirror:
        for path in (f"manifests/{image.digest}", f"blobs/{layer}"):
            assert (await mirror.get(f"/v2/{OTHER}/{path}")).status == 404
            assert (await mirror.get(f"/v2/invented/app/{path}")).status == 404


async def test_an_allowed_tag_moves_away(hub, governed, monkeypatch):
    """A digest that was served while an allowed tag named it is refused once only refused ones do."""
    image = hub.add_image(APP, "latest")
    hub.move_tag(APP, "1", image.digest)
    async with governed() as mirror:
        await mirror.get(f"/v2/{APP}/manifests/latest")
    async with governed(deny=["*/*:latest"]) as mirror:
        path = f"/v2/{APP}/manifests/{image.digest}"
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        for _ in range(3):
            assert (await mirror.get(path)).body == image.raw
        hub.add_image(APP, "1", layers=[b"new"])
        Clock(mirror, monkeypatch).advance(61)
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        await assert_denied(mirror, path, "deny: */*:latest")


async def test_a_denied_digest_is_not_listed(hub, governed):
    """A tag that is known to name a denied digest is in no list of tags, and its repository alone not in the catalog."""
    image = hub.add_image(APP, "bad")
    hub.add_image(OTHER, "good")
    hub.add_image(APP, "good")
    async with governed() as mirror:
        for path in (f"{APP}/manifests/bad", f"{OTHER}/manifests/good"):
            assert (await mirror.get(f"/v2/{path}")).status == 200
    async with governed(deny=denies(image.digest)) as mirror:
        assert await listed(mirror, f"/v2/{APP}/tags/list", "tags") == [["good"]]
        assert await listed(mirror, "/v2/_catalog", "repositories") == [[OTHER]]


# ---- lists


async def listed(mirror, path, key):
    """The pages of a list."""
    pages = []
    while path is not None:
        answer = await mirror.get(path)
        assert answer.status == 200
        pages.append(json.loads(answer.body)[key])
        path = answer.headers["Link"].partition(">")[0].removeprefix("<") if "Link" in answer.headers else None
    return pages


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [["1.0", "1.1"], ["2.0", "latest"], ["nightly"]]),
        ({"deny": ["*:latest"]}, [["1.0", "1.1"], ["2.0"], ["nightly"]]),
        ({"deny": ["*:1.*"]}, [[], ["2.0", "latest"], ["nightly"]]),
        ({"deny": ["*:night*"]}, [["1.0", "1.1"], ["2.0", "latest"], []]),
        ({"allow": ["library/app:1.*", "other/*"]}, [["1.0", "1.1"], [], []]),
        ({"allow": ["library/app:*.0", "library/app:1.*"], "deny": ["app:1.0"]}, [["1.1"], ["2.0"], []]),
    ],
)
async def test_refused_tags_are_not_listed(hub, governed, rules, expected):
    """A list of tags lacks those that may not be pulled, from memory, too; its pages still lead to its end."""
    hub.add_image("library/app", "1.0")
    for tag in ("1.1", "2.0", "latest", "nightly"):
        hub.add_image("library/app", tag)
    async with governed(**rules) as mirror:
        for _ in range(2):
            assert await listed(mirror, "/v2/library/app/tags/list?n=2", "tags") == expected
            assert await listed(mirror, "/v2/library/app/tags/list", "tags") == [[tag for page in expected for tag in page]]
        for tag in ("1.0", "1.1", "2.0", "latest", "nightly"):
            status = (await mirror.get(f"/v2/library/app/manifests/{tag}")).status
            assert status == (200 if any(tag in page for page in expected) else 403)


async def test_what_is_no_tag_is_not_listed_by_rules(hub, governed):
    """What upstream calls a tag and nobody could pull is passed on as it is, but not where there are rules about tags."""
    hub.add_image("library/app", "1")
    body = json.dumps({"name": "library/app", "tags": ["1", "no tag", "-", ""]}).encode()
    hub.script(Rule(kind="tags", times=None), Status(200, body=body))
    async with governed() as mirror:
        assert await listed(mirror, "/v2/library/app/tags/list", "tags") == [["1", "no tag", "-", ""]]
    async with governed(deny=["*/*:latest"]) as mirror:
        assert await listed(mirror, "/v2/library/app/tags/list", "tags") == [["1"]]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [["evil/app", "library/a"], ["library/b", "library/c"]]),
        ({"deny": ["evil/*"]}, [["library/a", "library/b"], ["library/c"]]),
        ({"deny": ["evil/*:*", "b"]}, [["library/a", "library/c"]]),
        ({"allow": ["library/*"], "deny": ["*/*:latest"]}, [["library/a", "library/b"]]),
        ({"allow": ["other/*"]}, [[]]),
    ],
)
async def test_refused_repositories_are_not_in_the_catalog(hub, governed, rules, expected):
    """What was pulled before the rules and may not be pulled any more is not listed; pages are as long as they can be."""
    for name, tag in (("evil/app", "1"), ("library/a", "1"), ("library/b", "1"), ("library/c", "latest")):
        hub.add_image(name, tag)
    async with governed() as mirror:
        for name, tag in (("evil/app", "1"), ("library/a", "1"), ("library/b", "1"), ("library/c", "latest")):
            assert (await mirror.get(f"/v2/{name}/manifests/{tag}")).status == 200
    async with governed(**rules) as mirror:
        assert await listed(mirror, "/v2/_catalog?n=2", "repositories") == expected


async def test_registries_that_are_gone_are_not_in_the_catalog(hub, tmp_path):
    """What was pulled from a registry that is not configured any more is not listed: its name would mean something else."""
    hub.add_image("team/app", "1")
    upstream = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    both = {"docker.io": upstream, "other.example": upstream}
    async with MirrorUnderTest(hub, tmp_path / "store", registries=both) as mirror:
        assert (await mirror.get("/v2/team/app/manifests/1?ns=other.example")).status == 200
        assert await listed(mirror, "/v2/_catalog", "repositories") == [["other.example/team/app"]]
        await mirror.reload(registries={"docker.io": upstream})
        assert await listed(mirror, "/v2/_catalog", "repositories") == [[]]
