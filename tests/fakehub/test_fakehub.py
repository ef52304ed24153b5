"""The fake behaves as Docker Hub does."""

import asyncio
import json
import re
from urllib.parse import unquote

import aiohttp
import pytest
from yarl import URL

from . import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, FakeHub, Rule, Status
from .bodies import digest_of
from .clients import REPOSITORY, Client, client
from .plugin import hub

__all__ = ["client", "hub"]


async def test_token_dance(hub: FakeHub, client: Client) -> None:
    """A manifest needs a token of the realm in the challenge, and a token ends."""
    image = hub.add_image(REPOSITORY, "latest")
    path = f"/v2/{REPOSITORY}/manifests/latest"
    async with client.ask(path) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == (
            f'Bearer realm="http://{hub.token_host}/token",service="registry.docker.io",scope="repository:{REPOSITORY}:pull"'
        )
    token = await client.token()
    async with client.ask(path, token) as answer:
        assert (answer.status, await answer.read()) == (200, image.raw)
        assert answer.headers["Docker-Content-Digest"] == image.digest == digest_of(image.raw)
        assert answer.headers["Content-Type"] == OCI_MANIFEST
    hub.advance(hub.token_lifetime + 1)
    async with client.ask(path, token) as answer:
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert [seen.kind for seen in hub.requests] == ["manifest", "token", "manifest", "manifest"]


async def test_unknown_and_private_repositories(hub: FakeHub, client: Client) -> None:
    """What may not be seen is 401 even with a token; credentials open what they may."""
    hub.add_image("acme/secret", "1")
    hub.private("acme/secret", users={"u"})
    hub.users = {"u": "p", "v": "p"}
    for repository in ("acme/none", "acme/secret"):
        async with client.ask(f"/v2/{repository}/manifests/1", await client.token(repository)) as answer:
            assert answer.status == 401
            assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]
            assert (await answer.json())["errors"][0]["detail"][0]["Name"] == repository
    for user, status in (("u", 200), ("v", 401)):
        token = await client.token("acme/secret", user, "p")
        async with client.ask("/v2/acme/secret/manifests/1", token) as answer:
            assert answer.status == status
    wrong = {"Authorization": aiohttp.encode_basic_auth("u", "wrong")}
    async with client.session.get(f"http://{hub.token_host}/token", headers=wrong) as answer:
        assert answer.status == 401


async def test_other_ways_to_log_in(hub: FakeHub, client: Client) -> None:
    """A registry may want Basic credentials, or nothing."""
    hub.add_image(REPOSITORY, "latest")
    path = f"/v2/{REPOSITORY}/manifests/latest"
    hub.auth = "none"
    async with client.ask(path) as answer:
        assert answer.status == 200
    hub.auth, hub.users = "basic", {"u": "p"}
    async with client.ask(path) as answer:
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="Registry"'
    async with client.ask(path, Authorization=aiohttp.encode_basic_auth("u", "p")) as answer:
        assert answer.status == 200


async def test_manifests(hub: FakeHub, client: Client) -> None:
    """Tags and digests answer GET and HEAD alike; unknown ones and unacceptable types are 404."""
    image = hub.add_image(REPOSITORY, "latest", platforms=["linux/amd64", "linux/arm64"])
    token = await client.token()
    child = image.children["linux/arm64"]
    for reference, raw in (("latest", image.raw), (image.digest, image.raw), (child.digest, child.raw)):
        path = f"/v2/{REPOSITORY}/manifests/{reference}"
        async with client.ask(path, token) as got, client.ask(path, token, "HEAD") as head:
            assert await got.read() == raw
            for name in ("Content-Type", "Content-Length", "Docker-Content-Digest", "ETag"):
                assert got.headers[name] == head.headers[name]
    async with client.ask(f"/v2/{REPOSITORY}/manifests/none", token) as answer:
        assert answer.status == 404
        assert (await answer.json())["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    async with client.ask(f"/v2/{REPOSITORY}/manifests/latest", token, Accept=DOCKER_MANIFEST) as answer:
        assert answer.status == 404
        assert "accept header does not support" in await answer.text()
    async with client.ask(f"/v2/{REPOSITORY}/blobs/{image.digest}", token) as answer:
        assert answer.status == 404


async def test_pull_limit(hub: FakeHub, client: Client) -> None:
    """GET of a manifest is counted, HEAD is not; when nothing is left GET is 429."""
    hub.add_image(REPOSITORY, "latest")
    hub.ratelimit_limit = hub.ratelimit_remaining = 2
    token, path = await client.token(), f"/v2/{REPOSITORY}/manifests/latest"
    remaining = []
    for method in ("HEAD", "GET", "HEAD", "GET"):
        async with client.ask(path, token, method) as answer:
            remaining.append(answer.headers["ratelimit-remaining"])
            assert answer.headers["ratelimit-limit"] == "2;w=21600"
            assert answer.headers["docker-ratelimit-source"] == "127.0.0.1"
    assert remaining == ["2;w=21600", "1;w=21600", "1;w=21600", "0;w=21600"]
    async with client.ask(path, token) as answer:
        assert answer.status == 429
        assert (await answer.json())["errors"][0]["code"] == "TOOMANYREQUESTS"


async def test_blobs_are_redirected(hub: FakeHub, client: Client) -> None:
    """A blob comes from another host by an address that is signed, for GET, for a while, byte for byte."""
    data = bytes(range(256)) * 100
    digest = hub.add_blob(REPOSITORY, data)
    location = await client.location(digest)
    assert location.startswith(f"http://{hub.cdn_host}/")
    assert re.search(r"%2F.*%3D$", location)
    async with client.ask(location) as answer:
        assert (answer.status, await answer.read()) == (200, data)
        assert "Set-Cookie" in answer.headers
        assert not [name for name in answer.headers if name.lower().startswith("docker")]
    for changed in (unquote(location), location[:-4] + "_" + location[-3:], str(URL(location))):
        async with client.ask(changed) as answer:
            assert answer.status == 403
    async with client.ask(location, method="HEAD") as answer:
        assert answer.status == 403
    async with client.ask(location, "token") as answer:
        assert answer.status == 400
    assert hub.bytes_sent(digest) >= len(data)
    hub.advance(hub.url_lifetime + 1)
    async with client.ask(location) as answer:
        assert answer.status == 403
        assert b"expired" in await answer.read()


@pytest.mark.parametrize(
    ("value", "status", "part", "content_range"),
    [
        ("bytes=0-3", 206, slice(0, 4), "bytes 0-3/10"),
        ("bytes=7-99", 206, slice(7, 10), "bytes 7-9/10"),
        ("bytes=4-", 206, slice(4, 10), "bytes 4-9/10"),
        ("bytes=-3", 206, slice(7, 10), "bytes 7-9/10"),
        ("bytes=10-", 416, slice(0), "bytes */10"),
        ("bytes=0-1,3-4", 200, slice(0, 10), None),
    ],
)
async def test_ranges(hub: FakeHub, client: Client, value: str, status: int, part: slice, content_range: str | None) -> None:
    """The CDN and the registry honour a single range."""
    data = b"0123456789"
    digest = hub.add_blob(REPOSITORY, data)
    location = await client.location(digest)
    hub.redirect_blobs = False
    for path in (location, f"/v2/{REPOSITORY}/blobs/{digest}"):
        token = None if path == location else await client.token()
        async with client.ask(path, token, Range=value) as answer:
            assert (answer.status, await answer.read()) == (status, data[part])
            assert answer.headers.get("Content-Range") == content_range


async def test_head_of_a_blob(hub: FakeHub, client: Client) -> None:
    """HEAD of a blob tells its length, or redirects to an address signed for HEAD."""
    digest, token = hub.add_blob(REPOSITORY, b"0123456789"), await client.token()
    path = f"/v2/{REPOSITORY}/blobs/{digest}"
    async with client.ask(path, token, "HEAD") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "10")
        assert answer.headers["Docker-Content-Digest"] == digest
    hub.redirect_head = True
    async with client.ask(path, token, "HEAD") as answer:
        assert answer.status == 307
    async with client.ask(answer.headers["Location"], method="HEAD") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "10")


async def test_tags(hub: FakeHub, client: Client) -> None:
    """Tags come in order and in pages, with a relative or an absolute Link."""
    for tag in ("c", "a", "b"):
        hub.add_image(REPOSITORY, tag)
    token = await client.token()
    async with client.ask(f"/v2/{REPOSITORY}/tags/list?n=2", token) as answer:
        assert (await answer.json())["tags"] == ["a", "b"]
        link = answer.headers["Link"]
        assert link == f'</v2/{REPOSITORY}/tags/list?last=b&n=2>; rel="next"'
    async with client.ask(link[1 : link.index(">")], token) as answer:
        assert (await answer.json())["tags"] == ["c"]
        assert "Link" not in answer.headers
    hub.absolute_links = True
    async with client.ask(f"/v2/{REPOSITORY}/tags/list?n=1", token) as answer:
        assert answer.headers["Link"].startswith(f"<{hub.url}/v2/")


async def test_opaque_links(hub: FakeHub, client: Client) -> None:
    """A link whose query is the registry's own affair leads on as it was written, and not when it was written anew."""
    for tag in ("a", "b"):
        hub.add_image(REPOSITORY, tag)
    hub.opaque_links, token = True, await client.token()
    async with client.ask(f"/v2/{REPOSITORY}/tags/list?n=1", token) as answer:
        target = answer.headers["Link"][1 : answer.headers["Link"].index(">")]
    assert "next_page=" in target
    async with client.ask(target, token) as answer:
        assert (await answer.json())["tags"] == ["b"]
    async with client.ask(target.removesuffix("=") + "%3D", token) as answer:
        assert answer.status == 400


async def test_referrers(hub: FakeHub, client: Client) -> None:
    """Referrers of a manifest are listed, filtered, or not supported at all."""
    image, token = hub.add_image(REPOSITORY, "latest"), await client.token()
    digest = hub.add_referrer(REPOSITORY, image.digest, "application/x.sig")
    path = f"/v2/{REPOSITORY}/referrers/{image.digest}"
    async with client.ask(path, token) as answer:
        assert answer.headers["Content-Type"] == OCI_INDEX
        assert [each["digest"] for each in json.loads(await answer.read())["manifests"]] == [digest]
    async with client.ask(path + "?artifactType=other", token) as answer:
        assert json.loads(await answer.read())["manifests"] == []
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    hub.referrers = False
    async with client.ask(path, token) as answer:
        assert answer.status == 404


async def test_writes_and_catalog_are_refused(hub: FakeHub, client: Client) -> None:
    """Nothing can be pushed and the catalog is closed."""
    hub.add_image(REPOSITORY, "latest")
    token = await client.token()
    async with client.ask("/v2/_catalog", token) as answer:
        assert answer.status == 401
    async with client.ask(f"/v2/{REPOSITORY}/blobs/uploads/", token, "POST") as answer:
        assert answer.status == 401
    hub.auth = "none"
    async with client.ask(f"/v2/{REPOSITORY}/blobs/uploads/", token, "POST") as answer:
        assert answer.status == 405


async def test_content_moves(hub: FakeHub, client: Client) -> None:
    """Tags move and vanish, and so do manifests."""
    old, new = hub.add_image(REPOSITORY, "1"), hub.add_image(REPOSITORY, "2", docker=True)
    assert new.media_type == DOCKER_MANIFEST
    token, path = await client.token(), f"/v2/{REPOSITORY}/manifests/1"
    hub.move_tag(REPOSITORY, "1", new.digest)
    async with client.ask(path, token) as answer:
        assert answer.headers["Docker-Content-Digest"] == new.digest
    hub.delete_tag(REPOSITORY, "1")
    hub.delete_manifest(REPOSITORY, old.digest)
    for gone in (path, f"/v2/{REPOSITORY}/manifests/{old.digest}"):
        async with client.ask(gone, token) as answer:
            assert answer.status == 404
    hub.delete_blob(REPOSITORY, new.layers[0].digest)
    async with client.ask(f"/v2/{REPOSITORY}/blobs/{new.layers[0].digest}", token) as answer:
        assert answer.status == 404


async def test_stop_and_start(hub: FakeHub, client: Client) -> None:
    """A stopped hub refuses connections and comes back on the same ports."""
    hub.auth, url = "none", hub.url
    async with client.ask("/v2/") as answer:
        assert answer.status == 200
    await hub.stop()
    for host in (hub.registry_host, hub.cdn_host, hub.token_host):
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.session.get(f"http://{host}/v2/")
    await hub.start()
    async with client.ask("/v2/") as answer:
        assert (answer.status, hub.url) == (200, url)


async def test_counters(hub: FakeHub, client: Client) -> None:
    """Requests can be counted, awaited and forgotten."""
    hub.add_image(REPOSITORY, "latest")
    hub.script(Rule(kind="manifest"), Status(503))
    waiting = asyncio.create_task(hub.wait_for(kind="manifest", status=503, timeout=5))
    async with client.ask(f"/v2/{REPOSITORY}/manifests/latest", await client.token()) as answer:
        assert answer.status == 503
    assert [seen.reference for seen in await waiting] == ["latest"]
    assert hub.count(method="GET", kind="manifest", host="registry", repository=REPOSITORY) == 1
    hub.reset_counters()
    assert (hub.count(), hub.bytes_sent()) == (0, 0)
