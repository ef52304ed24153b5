"""Images on their way through a mirror under test."""

import os

from tests.support.names import APP, TAG, blob_path, manifest_path


async def pulled(hub, mirror, **image):
    """An image that the mirror holds completely."""
    made = hub.add_image(APP, "1", **image)
    assert (await mirror.get(TAG)).status == 200
    for child in made.children.values():
        assert (await mirror.get(f"/v2/{APP}/manifests/{child.digest}")).status == 200
    for blob in [made.config, *made.layers]:
        assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).status == 200
    await mirror.idle()
    return made


def contents(image):
    children = [digest for child in image.children.values() for digest in contents(child)]
    return [image.digest, *children, *({image.config.digest, *(layer.digest for layer in image.layers)} - set(children))]


async def pull(mirror, image, tag):
    """What a client does; returns the outcomes. Every byte is checked."""
    outcomes = []
    answer = await mirror.get(manifest_path(tag))
    assert (answer.status, answer.body) == (200, image.raw)
    outcomes.append(answer.cache)
    for blob in [image.config, *image.layers]:
        answer = await mirror.get(blob_path(blob))
        assert (answer.status, answer.sha256) == (200, blob.digest)
        outcomes.append(answer.cache)
    await mirror.idle()
    return outcomes


def age(mirror, image_or_digests, when):
    """Say when content was used last."""
    digests = image_or_digests if isinstance(image_or_digests, list) else contents(image_or_digests)
    for digest in digests:
        os.utime(mirror.blob_path(digest), (when, when))
