"""What tests of syncing share: orders given over the admin address, and waiting for their end."""

import json
import time

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from tests.support.names import APP, tag_name
from tests.support.waiting import eventually


class Orders:
    """Gives orders to a mirror under test."""

    def __init__(self, mirror):
        self._mirror = mirror

    async def ask(self, method, path, body=None, headers=None):
        url = f"http://127.0.0.1:{self._mirror.admin_port}{path}"
        async with self._mirror.session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def give(self, kind, **body):
        """The name of an order."""
        status, answer = await self.ask("POST", f"/api/v1/{kind}", body)
        assert status == 202, answer
        return answer["order"]

    async def ended(self, name):
        """What came of an order."""

        async def order():
            status, answer = await self.ask("GET", f"/api/v1/sync/{name}")
            assert status == 200
            return answer

        return await eventually(order, f"the end of {name}", holds=lambda order: order["result"] not in ("waiting", "running"))

    async def sync(self, *images):
        return await self.ended(await self.give("sync", images=list(images)))

    async def warm(self, *images, platforms=()):
        return await self.ended(await self.give("warm", images=list(images), platforms=list(platforms)))

    async def state(self):
        return (await self.ask("GET", "/api/v1/sync"))[1]

    async def until(self, found):
        """Wait until the state is what `found` wants, and return it."""
        return await eventually(self.state, "the state of syncing", holds=found)


async def pull(mirror, repository, tag, platform=None):
    """Pull as a client does; returns the digests that it got."""
    got = await mirror.get(f"/v2/{repository}/manifests/{tag}")
    assert got.status == 200, got.body
    manifest = json.loads(got.body)
    digests = [got.sha256]
    if "manifests" in manifest:
        wanted = platform or "linux/amd64"
        child = next(
            entry
            for entry in manifest["manifests"]
            if "/".join((entry["platform"]["os"], entry["platform"]["architecture"])) == wanted
        )
        return digests + await pull(mirror, repository, child["digest"])
    for blob in (manifest["config"], *manifest["layers"]):
        body = await mirror.get(f"/v2/{repository}/blobs/{blob['digest']}")
        assert (body.status, body.sha256) == (200, blob["digest"])
        digests.append(body.sha256)
    return digests


def known(mirror, image, tag, *, repository=APP, pulled=0.0, pulls=1):
    """Put a tag into the index as if it had been pulled some seconds ago, and so often; of its content nothing is held."""
    now = time.time()
    record = TagRecord(Digest.parse(image.digest), image.media_type, len(image.raw), now - 3600, now - 3600, now - pulled)
    mirror.store.index.tags.put(*tag_name(tag, repository), record)
    mirror.store.index.tags.note_pull(*tag_name(tag, repository), now - pulled, pulls)


def named(mirror, tag, repository=APP):
    """The digest that a tag names here."""
    record = mirror.store.index.tags.get(*tag_name(tag, repository))
    return None if record is None else str(record.digest)
