"""A body whose grant is still to come with the response to its first range."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor

from mirror.download.reader import Span, StreamingBody
from mirror.errors import UpstreamRefusal


class UngrantedBody:
    """Sends nothing before upstream has granted the blob, and requests no grant before the first range: its response is one.

    See `mirror.download.reader.Body`.

    Args:
        require_grant: returns when there is a grant; raises UpstreamRefusal if there is none.
        refused: notes that upstream refuses the range itself.
    """

    def __init__(
        self,
        body: StreamingBody,
        require_grant: Callable[[], Awaitable[None]],
        refused: Callable[[UpstreamRefusal], Awaitable[None]],
    ) -> None:
        self._body = body
        self._require_grant = require_grant
        self._refused = refused

    @property
    def bypassed(self) -> bool:
        return self._body.bypassed

    @property
    def threads(self) -> Executor:
        return self._body.threads

    async def sized(self) -> int:
        """Wait for the size, which is no secret: a manifest of the repository states it."""
        return await self._body.sized()

    async def ready(self, start: int, stop: int) -> None:
        """Wait for the byte at `start`, and for the grant."""
        try:
            await self._body.ready(start, stop)
        except UpstreamRefusal as error:
            await self._refused(error)
            raise
        await self._require_grant()

    def spans(self, start: int, stop: int) -> AsyncIterator[Span | bytes]:
        """What has arrived, after `ready`."""
        return self._body.spans(start, stop)

    async def stored(self) -> bool:
        """Wait for the end of the ingest."""
        return await self._body.stored()

    async def close(self) -> None:
        """Leave the ingest."""
        await self._body.close()
