"""Clients that fetch large blobs from the bucket themselves, where the operator allows it."""

import pytest

from mirror.core.digest import Digest
from tests.mirror.buckets import key, nothing_owed, pull
from tests.support.names import APP, sha256
from tests.support.waiting import eventually

MIB = 1 << 20
NETWORKS = {"networks": ["127.0.0.0/8"], "min_size": "1MiB"}


def redirected(opened, name, **settings):
    """A mirror that redirects clients on this host."""
    return opened(name, objects={"redirect": {**NETWORKS, **settings.pop("redirect", {})}}, **settings)


async def known(mirror, image):
    """Have a mirror know what is in the bucket, as it does after an upload or after reading it."""
    for layer in image.layers:
        await mirror.services.objects.uses.facts.note_present(Digest.parse(layer.digest), layer.size)


async def ask(mirror, digest, method="GET", repository=APP, **headers):
    """The response, not followed."""
    url = mirror.url(f"/v2/{repository}/blobs/{digest}")
    async with mirror.session.request(method, url, headers=headers, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


async def test_large_blob_that_is_not_here(hub, kept, opened):
    """The URL has the bytes; the node fetches nothing, and answers everything else itself."""
    layer, config = kept.layers[0], kept.config
    async with redirected(opened, "second") as mirror:
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        await known(mirror, kept)
        status, headers, body = await ask(mirror, layer.digest)
        assert (status, body, headers["X-Cache"], headers["Cache-Control"]) == (307, b"", "BYPASS", "no-store")
        assert headers["Docker-Content-Digest"] == layer.digest
        assert "X-Amz-Expires=600" in headers["Location"]
        async with mirror.session.get(headers["Location"]) as response:
            assert sha256(await response.read()) == layer.digest
        assert not mirror.holds(layer.digest)
        assert await mirror.metric("requests_total", status="307", outcome="BYPASS") == 1

        status, headers, _ = await ask(mirror, layer.digest, "HEAD")
        assert (status, headers["Content-Length"]) == (200, str(layer.size))
        assert (await ask(mirror, config.digest))[0] == 200
        assert (await ask(mirror, layer.digest, Range="bytes=0-9"))[0] == 206
        await eventually(lambda: mirror.holds(layer.digest), "fetched for the range")
        assert (await ask(mirror, layer.digest))[0] == 200
        assert hub.count(method="GET", kind="blob") == 0


async def test_promise_is_asked_for_once(kept, opened, monkeypatch):
    """In a cluster each one is a call to Redis."""
    async with redirected(opened, "second") as mirror:
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        await known(mirror, kept)
        facts, asked = mirror.services.objects.uses.facts, []
        promise = facts.promise

        async def counted(digest):
            asked.append(str(digest))
            return await promise(digest)

        monkeypatch.setattr(facts, "promise", counted)
        assert (await ask(mirror, kept.layers[0].digest))[0] == 307
        assert asked == [kept.layers[0].digest]


@pytest.mark.parametrize("redirect", [{"networks": ["10.0.0.0/8"]}, {"networks": []}, {"min_size": "4MiB"}])
async def test_who_is_not_redirected(redirect, kept, opened):
    async with redirected(opened, "second", redirect=redirect) as mirror:
        await known(mirror, kept)
        assert (await ask(mirror, kept.layers[0].digest))[0] == 200


async def test_what_is_not_promised(hub, bucket, kept, opened):
    """What nobody knows to be there, what somebody else has deleted, and what the sweeper is about to delete is streamed."""
    other = hub.add_image(APP, "2", [hub.add_synthetic_blob(APP, 2 * MIB, 5), kept.layers[0]])
    async with redirected(opened, "second") as mirror:
        facts = mirror.services.objects.uses.facts
        assert (await ask(mirror, other.layers[0].digest))[0] == 200
        await known(mirror, kept)
        digest = Digest.parse(kept.layers[0].digest)
        bucket.delete(key("blobs", str(digest)))
        assert (await ask(mirror, str(digest)))[0] == 200
        assert await facts.promise(digest) is None


async def test_object_that_was_cut_off(bucket, kept, opened):
    """A client that was sent to it would fail at each attempt."""
    async with redirected(opened, "second") as mirror:
        await known(mirror, kept)
        digest = kept.layers[0].digest
        bucket.put(key("blobs", digest), b"cut")
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        status, _, body = await ask(mirror, digest)
        assert (status, sha256(body)) == (200, digest)


async def test_only_with_a_right(hub, kept, opened):
    """A foreign repository gets no URL, nor does anybody in a registry with an account."""
    hub.add_image("library/other", "1")
    async with redirected(opened, "second") as mirror:
        await known(mirror, kept)
        assert (await ask(mirror, kept.layers[0].digest, repository="library/other"))[0] == 404


async def test_registry_with_an_account(hub, kept, opened, tmp_path):
    """Its blobs never become readable by a URL."""
    hub.users["user"] = "password"
    (tmp_path / "password").write_text("password")
    account = {"username": "user", "password_file": str(tmp_path / "password")}
    entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], **account}
    async with redirected(opened, "second", registries={"docker.io": entry}) as mirror:
        await known(mirror, kept)
        assert (await ask(mirror, kept.layers[0].digest))[0] == 200


async def test_bucket_that_is_down(kept, proxy, opened):
    """The client waits for nothing."""
    async with redirected(opened, "second") as mirror:
        await known(mirror, kept)
        proxy.status = 503
        assert (await ask(mirror, kept.layers[0].digest))[0] == 200


async def test_prefetch_leaves_it_to_the_bucket(hub, bucket, kept, opened):
    """Else the node would fetch what it is spared."""
    async with redirected(opened, "second", downloads={"prefetch": True}) as mirror:
        await known(mirror, kept)
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 200
        await eventually(lambda: mirror.holds(kept.config.digest), "fetched ahead")
        await mirror.idle()
        assert not mirror.holds(kept.layers[0].digest)


async def test_what_was_uploaded_and_evicted_is_redirected(hub, bucket, opened):
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 3 * MIB, 1)])
    async with redirected(opened, "first") as mirror:
        await pull(mirror, image)
        await nothing_owed(mirror)
        assert (await ask(mirror, image.layers[0].digest))[0] == 200
        mirror.blob_path(image.layers[0].digest).unlink()
        assert (await ask(mirror, image.layers[0].digest))[0] == 307
