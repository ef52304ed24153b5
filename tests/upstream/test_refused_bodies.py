"""Bodies of blobs that are refused by what their heads say."""

import contextlib
from types import SimpleNamespace

import pytest
from multidict import CIMultiDict
from yarl import URL

from mirror.core.digest import Digest
from mirror.errors import UpstreamProtocolError
from mirror.upstream.attempt import Attempt, Place
from mirror.upstream.registry import Registry


class Body:
    """A body that is being received into a buffer until it is closed."""

    closed = False

    def close(self, *, is_used=True):
        self.closed = True


class Upstream:
    """Answers every request with one head."""

    name = "upstream.test"

    def __init__(self, status, headers):
        self.opened = Body()
        self.health = SimpleNamespace(doubted_until=0.0)
        self.resources = contextlib.AsyncExitStack()
        self._response = SimpleNamespace(
            url=URL("https://upstream.test/"), status=status, headers=CIMultiDict(headers), content_length=10
        )

    async def attempt(self, request, work, seconds):
        try:
            async with self.resources:
                await work(self)
        except UpstreamProtocolError as error:
            return Attempt(Place.REGISTRY, error=error)

    async def response(self):
        return self._response

    def body(self, _):
        return self.opened

    def received(self, _):
        pass


@pytest.mark.parametrize(
    ("status", "headers"),
    [(206, {"Content-Range": "bytes 7-16/100"}), (206, {"Content-Range": "bytes 5-14/*"}), (200, {"Content-Encoding": "gzip"})],
)
async def test_a_refused_body_is_closed(status, headers):
    """It has begun to arrive by then: what it is received into has to go back to those that share it."""
    upstream = Upstream(status, headers)
    with pytest.raises(UpstreamProtocolError):
        async with Registry("registry.test", [upstream]).blob("a/b", Digest.of(b"x"), 5, None):
            pass
    assert upstream.opened.closed
