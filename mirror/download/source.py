"""What a download needs from an upstream: a stream of bytes from a position on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol


class BlobStream(Protocol):
    """Bytes of a blob as they arrive from upstream.

    Attributes:
        start: position of the first byte that will come.
        size: bytes of the whole blob.
    """

    @property
    def start(self) -> int: ...
    @property
    def size(self) -> int: ...

    def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """The bytes, in pieces of whatever size arrives; each is good until the next is asked for.

        Raises:
            UpstreamError: it stalled, broke or ended too early.
        """
        ...


class Source(Protocol):
    """Where the bytes of one blob come from; equal to others that lead to the same place, and hashable."""

    def __hash__(self) -> int: ...
    def held(self) -> AbstractContextManager[None]:
        """Keep the way to it open inside the context, whatever becomes of the configuration."""
        ...

    def penalize(self) -> None:
        """What came from here was wrong: let the next bytes come from somewhere else, if there is any."""
        ...

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[BlobStream]:
        """Ask for the bytes from `start` on (up to, not including, `stop` if given).

        Raises:
            UpstreamError: no answer, or no useful one.
            UpstreamRefusal: upstream does not have it or does not grant it.
        """
        ...
