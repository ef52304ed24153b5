"""Pulls by a real dockerd, of images that nobody has seen."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from bench.content import REPOSITORY, Content
from bench.lineup import Settings
from bench.process import NotTakenError
from tests.e2e.harness import images
from tests.e2e.harness.dockerd import Dockerd, PullError
from tests.e2e.harness.process import HarnessError

LIMIT = 120.0


@contextmanager
def daemon(settings: Settings, name: str, url: str) -> Iterator[Dockerd]:
    """A daemon that pulls through the registry at `url`; `name` tells its directory from others."""
    try:
        started = Dockerd(settings.home / f"dockerd-{name}", url)
    except HarnessError as error:
        raise NotTakenError(f"no dockerd: {str(error).splitlines()[0]}") from error
    with closing(started):
        yield started


def pull(daemon: Dockerd, tag: str) -> float:
    """Seconds for one pull; the daemon holds nothing before and after."""
    began = time.monotonic()
    try:
        daemon.pull(REPOSITORY, tag, LIMIT)
    except (PullError, OSError) as error:
        raise NotTakenError(f"dockerd did not pull {REPOSITORY}:{tag}: {error}") from error
    took = time.monotonic() - began
    daemon.remove_all()
    return took


def add_image(content: Content, number: int, layers: int, layer_bytes: int) -> int:
    """Write an image with the tag `number`, no layer of which another has; bytes of all that a client downloads of it."""
    noise = [images.layer_of_noise(layer_bytes, number * layers + index) for index in range(layers)]
    image = images.build_image(images.OCI, images.HOST_ARCHITECTURE, noise)
    for blob in image.blobs:
        content.hold("blobs", blob.digest, blob.data)
    for reference in (image.manifest.digest, str(number)):
        content.hold("manifests", reference, image.manifest.data)
    return sum(len(part.data) for part in (image.manifest, *image.blobs))
