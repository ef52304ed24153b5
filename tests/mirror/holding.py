"""What tests of moves that are held back share: mirrors with rules for tags, a tag that has moved, and the header."""

import contextlib
from datetime import datetime

from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG

COOLDOWN = {"match": APP, "cooldown": "3d"}
REFUSING = {**COOLDOWN, "cooldown_new": "refuse"}
FROZEN = {"match": APP, "freeze": True}


def registries(hub, *rules, **settings):
    """The section `registries` with rules for tags of Docker Hub."""
    return {"docker.io": {"upstreams": [hub.url], "token_hosts": [hub.token_host], "tags": list(rules), **settings}}


class Holding:
    """Starts mirrors that share a store."""

    def __init__(self, hub, store, monkeypatch):
        self._hub, self._store, self._monkeypatch = hub, store, monkeypatch

    @contextlib.asynccontextmanager
    async def start(self, *rules, clock=None, **settings):
        """A mirror with rules for tags, and its clock, which goes on from an earlier one."""
        settings = {"registries": registries(self._hub, *rules), **settings}
        async with MirrorUnderTest(self._hub, self._store, **settings) as mirror:
            yield mirror, self.clock(mirror, clock)

    def clock(self, mirror, earlier=None):
        """The clock of a mirror that was started or reloaded."""
        own = Clock(mirror, self._monkeypatch)
        own.offset = 0.0 if earlier is None else earlier.offset
        return own


async def moved(hub, mirror, clock):
    """Pull an image, and move its tag: the old and the new image."""
    old = hub.add_image(APP, "1", layers=[b"old"])
    assert (await mirror.get(TAG)).sha256 == old.digest
    new = hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    return old, new


def held_back(answer):
    """The digest that an answer says to be held back, and until when; None without a header."""
    text = answer.headers.get("X-Registry-Mirror-Held-Back")
    if text is None:
        return None
    digest, _, until = text.partition("; until=")
    return digest, until or None


def epoch(text):
    """A time of a header in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()
