"""What tests of a mirror with a bucket do, and look at."""

from mirror.objects.owed import OwedUploads
from tests.support.names import APP
from tests.support.waiting import eventually


def key(kind, digest):
    """The name of an object in the bucket of `opened`."""
    algorithm, _, encoded = digest.partition(":")
    return f"pre/fix/1/{kind}/{algorithm}/{encoded[:2]}/{encoded}"


def keys(image):
    """The names of all objects of an image."""
    return {key("manifests", image.digest), *(key("blobs", blob.digest) for blob in (*image.layers, image.config))}


async def pull(mirror, image, tag="1", repository=APP):
    """Pull an image; the outcome of each blob."""
    assert (await mirror.get(f"/v2/{repository}/manifests/{tag}")).status == 200
    outcomes = []
    for blob in (*image.layers, image.config):
        answer = await mirror.get(f"/v2/{repository}/blobs/{blob.digest}")
        assert (answer.status, answer.sha256) == (200, blob.digest)
        outcomes.append(answer.cache)
    await mirror.idle()
    return outcomes


async def uploaded(bucket, image):
    """Wait until an image is in the bucket."""
    await eventually(bucket.objects, "uploaded", holds=lambda found: keys(image) <= found.keys())


async def nothing_owed(mirror):
    """Wait until all uploads are made."""
    owed = OwedUploads(str(mirror.store_path / "index"))
    await eventually(owed.count, "nothing owed", holds=lambda count: count == 0)
    owed.close()


def sent(hub, image):
    """The bytes of blobs and the GETs of manifests that upstream has answered."""
    return sum(hub.bytes_sent(blob.digest) for blob in (*image.layers, image.config)), hub.count(method="GET", kind="manifest")
