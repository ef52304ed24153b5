"""Which registry and which repository a request is about, end to end."""

import json

import pytest

from tests.fakehub import FakeHub
from tests.support.mirrors import SHARED, MirrorUnderTest

METHODS = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.fixture
async def other_hub():
    """A second registry."""
    async with FakeHub() as running:
        yield running


@pytest.fixture
async def two(hub, other_hub, tmp_path):
    """A mirror of Docker Hub and of `other.example`, which hold different content under the same names."""
    registries = {
        name: {"upstreams": [one.url], "token_hosts": [one.token_host]}
        for name, one in (("docker.io", hub), ("other.example", other_hub))
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        yield mirror


@pytest.mark.parametrize("name", ["a/manifests/b", "a/blobs", "a/tags/list", "manifests/blobs", "v2/v2", "a/referrers/b/c"])
async def test_names_with_words_of_the_api(hub, mirror, name):
    """A repository called like a part of the API is pulled like any other."""
    image = hub.add_image(name, "1")
    assert (await mirror.get(f"/v2/{name}/manifests/1")).body == image.raw
    assert (await mirror.get(f"/v2/{name}/manifests/{image.digest}")).body == image.raw
    assert (await mirror.get(f"/v2/{name}/blobs/{image.layers[0].digest}")).body == image.layers[0].data
    assert json.loads((await mirror.get(f"/v2/{name}/tags/list")).body) == {"name": name, "tags": ["1"]}


async def test_registries_are_never_mixed(hub, other_hub, two):
    """Two registries with the same names have their own content, whichever form the client writes, cold and warm."""
    hub_image = hub.add_image("team/app", "1", layers=[b"hub"])
    other_image = other_hub.add_image("team/app", "1", layers=[b"other"])
    forms = {
        "/v2/team/app/manifests/1": hub_image,
        "/v2/team/app/manifests/1?ns=docker.io": hub_image,
        "/v2/docker.io/team/app/manifests/1": hub_image,
        "/docker.io/v2/team/app/manifests/1": hub_image,
        "/v2/team/app/manifests/1?ns=other.example": other_image,
        "/v2/other.example/team/app/manifests/1": other_image,
        "/other.example/v2/team/app/manifests/1": other_image,
    }
    for outcome in (None, "HIT"):
        for path, image in forms.items():
            answer = await two.get(path)
            assert answer.body == image.raw
            assert outcome is None or answer.cache == outcome


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_digest_of_another_registry(hub, other_hub, tmp_path, kind):
    """What a registry with credentials has granted is not served in another's name, though it is held."""
    password = tmp_path / "password"
    password.write_text("secret")
    other_hub.users = {"robot": "secret"}
    registries = {
        "docker.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host]},
        "other.example": {
            "upstreams": [other_hub.url],
            "token_hosts": [other_hub.token_host],
            "username": "robot",
            "password_file": str(password),
        },
    }
    image = other_hub.add_image("team/app", "1", layers=[b"other"])
    hub.add_image("team/app", "1", layers=[b"hub"])
    digest = image.digest if kind == "manifests" else image.layers[0].digest
    async with MirrorUnderTest(hub, tmp_path / "store", registries=registries) as mirror:
        assert (await mirror.get(f"/v2/team/app/{kind}/{digest}?ns=other.example")).status == 200
        await mirror.idle()
        for _ in range(2):
            assert (await mirror.get(f"/v2/team/app/{kind}/{digest}?ns=docker.io")).status == 404
        assert (await mirror.get(f"/v2/team/app/{kind}/{digest}?ns=other.example")).cache == "HIT"


async def test_short_names_are_docker_hubs(hub, other_hub, two):
    """`library/` is put before a short name on Docker Hub only."""
    hub_image = hub.add_image("library/app", "1")
    other_image = other_hub.add_image("app", "1")
    assert (await two.get("/v2/app/manifests/1")).body == hub_image.raw
    assert (await two.get("/v2/app/manifests/1?ns=other.example")).body == other_image.raw


@SHARED
@pytest.mark.parametrize("ns", ["evil.example", "127.0.0.1:1", "169.254.169.254", "docker.io.evil.example"])
@pytest.mark.parametrize("rest", ["manifests/1", f"blobs/sha256:{'0' * 64}", "tags/list", f"referrers/sha256:{'0' * 64}"])
async def test_unknown_registry_is_never_connected_to(shared_hub, shared_mirror, ns, rest):
    """A client can not have the mirror connect to a registry that is not configured."""
    before = dict(shared_hub.accepted)
    answer = await shared_mirror.get(f"/v2/library/app/{rest}?ns={ns}")
    assert (answer.status, answer.code()) == (404, "NAME_UNKNOWN")
    assert shared_hub.accepted == before


@SHARED
@pytest.mark.parametrize("rest", ["manifests/1", f"blobs/sha256:{'0' * 64}", "tags/list"])
@pytest.mark.parametrize("name", ["quay.io/app", "registry.example/a/b", "127.0.0.1:1/app"])
async def test_unknown_registry_in_the_path(shared_hub, shared_mirror, name, rest):
    """A registry in the path that is not configured is refused by its name, and the default one is not asked for it."""
    answer = await shared_mirror.get(f"/v2/{name}/{rest}")
    assert (answer.status, answer.code()) == (404, "NAME_UNKNOWN")
    assert f"registry '{name.partition('/')[0]}' is not mirrored here" in answer.body.decode()
    assert sum(shared_hub.accepted.values()) == 0


async def test_foreign_ns_has_no_way_out(hub, mirror):
    """`ns` with the fake's own address does not lead there either: only configured names count."""
    hub.add_image("library/app", "1")
    answer = await mirror.get(f"/v2/library/app/manifests/1?ns={hub.registry_host}")
    assert answer.status == 404
    assert sum(hub.accepted.values()) == 0


@SHARED
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/library/app/manifests/1", "/v2/library/app/blobs/uploads/", f"/v2/a/blobs/sha256:{'0' * 64}", "/x"]
)
async def test_writes_are_refused(shared_hub, shared_mirror, method, path):
    """Whatever would write is refused with the methods that are allowed, without a word to upstream."""
    answer = await shared_mirror.get(path, method, data=b"x" * 1000)
    assert (answer.status, answer.code()) == (405, "UNSUPPORTED")
    assert answer.headers["Allow"] == "GET, HEAD"
    assert sum(shared_hub.accepted.values()) == 0


@SHARED
async def test_root(shared_hub, shared_mirror):
    """A person who opens the address reads what it is; upstream is not asked, and the root of the API stays what it is."""
    answer = await shared_mirror.get("/")
    (line,) = answer.body.decode().splitlines()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert line == "registry-mirror: a read-only mirror of docker.io for container clients; its API is at /v2/"
    head = await shared_mirror.head("/")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(answer.body)), b"")
    assert (await shared_mirror.get("/v2/")).body == b"{}"
    assert (await shared_mirror.get("/", "POST")).status == 405
    assert sum(shared_hub.accepted.values()) == 0


@SHARED
@pytest.mark.parametrize("path", ["/v1/users", "/v2x", "/metrics", "/v2/library/app", "/evil.example/v2/", "/v2/_x"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_unknown_paths(shared_mirror, path, method):
    """What is no part of the API is 404 in the API's own form."""
    answer = await shared_mirror.get(path, method)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/json")
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    if method == "GET":
        (error,) = json.loads(answer.body)["errors"]
        assert error["detail"] == path


async def test_ping_needs_no_upstream(hub, mirror):
    """The ping is answered without upstream and without a challenge, whatever credentials come with it."""
    await hub.stop()
    for headers in ({}, {"Authorization": "Basic eDp5"}):
        for path in ("/v2/", "/v2"):
            answer = await mirror.get(path, headers=headers)
            assert (answer.status, answer.body) == (200, b"{}")
            assert "WWW-Authenticate" not in answer.headers


async def test_request_id(hub, mirror):
    """A client's own short and plain id is kept; any other, or none, becomes one of ours, each its own."""
    hub.add_image("library/app", "1")
    for path in ("/v2/", "/v2/library/app/manifests/1", "/v2/nothing", "/v2/UPPER/manifests/1"):
        assert (await mirror.get(path, headers={"X-Request-Id": "abc-1.2:3"})).headers["X-Request-Id"] == "abc-1.2:3"
        for bad in ("x" * 65, "a b", "a\tb", "ä", ""):
            assert (await mirror.get(path, headers={"X-Request-Id": bad})).headers["X-Request-Id"] not in ("", bad)
    ids = {(await mirror.get("/v2/")).headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20


async def test_request_id_goes_upstream(hub, mirror):
    """Upstream is told the id of the request that made the mirror ask."""
    image = hub.add_image("library/app", "1")
    layer = image.layers[0].digest
    for path in ("manifests/1", "tags/list", f"blobs/{layer}"):
        hub.reset_counters()
        await mirror.get(f"/v2/library/app/{path}", headers={"X-Request-Id": "mine"})
        assert {seen.headers.get("X-Request-Id") for seen in hub.requests if seen.host == "registry"} == {"mine"}
