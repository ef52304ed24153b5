"""Pulls through a whole mirror: what is asked of upstream, and what comes back."""

import os

import pytest

from tests.support.names import MIB


def layers(*sizes):
    return [os.urandom(size) for size in sizes]


async def pull(mirror, image, tag):
    """Do what dockerd does, and return the outcomes."""
    outcomes = []
    head = await mirror.head(f"/v2/{image}/manifests/{tag}")
    manifest = await mirror.get(f"/v2/{image}/manifests/{head.headers['Docker-Content-Digest']}")
    outcomes += [head.cache, manifest.cache]
    import json

    body = json.loads(manifest.body)
    for descriptor in [body["config"], *body["layers"]]:
        blob = await mirror.get(f"/v2/{image}/blobs/{descriptor['digest']}")
        assert blob.status == 200
        assert blob.sha256 == descriptor["digest"]
        outcomes.append(blob.cache)
    return outcomes


async def test_cold_then_warm(hub, mirror):
    """The first pull comes from upstream, the second from disk without a GET of anything."""
    hub.add_image("library/app", "1", layers=layers(10, 3 * MIB, 200_000))
    assert await pull(mirror, "library/app", "1") == ["MISS"] * 6
    await mirror.idle()
    hub.reset_counters()
    assert await pull(mirror, "library/app", "1") == ["HIT"] * 6
    assert hub.count() == 0


@pytest.mark.parametrize("name", ["app", "library/app"])
async def test_short_name_is_library(hub, mirror, name):
    """A one-component name is Docker Hub's library, and both spellings are one repository."""
    image = hub.add_image("library/app", "1", layers=layers(10))
    answer = await mirror.get(f"/v2/{name}/manifests/1")
    assert answer.status == 200
    assert answer.body == image.raw
    assert (await mirror.get("/v2/library/app/manifests/1")).cache == "HIT"
