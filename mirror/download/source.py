"""What an ingest needs from an upstream: a stream of bytes from a position on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.trailing import Ranges

AskForRanges = Callable[[Collection[int]], Awaitable[Ranges | None]]
"""Asks for what the node has that sends a blob; None if that is not known.

The answer comes as soon as a range begins at none of the given positions, or after a moment.
"""


@dataclass(frozen=True, slots=True)
class BlobRange:
    """A range of a blob, and the repository through which it is requested.

    Attributes:
        stop: the end, not included; None for the end of the blob.
        size: bytes of the blob by its manifest, None if that is not known.
    """

    repository: Repository
    digest: Digest
    start: int
    stop: int | None
    size: int | None = None

    @property
    def header(self) -> str:
        """The value of the header Range."""
        return f"bytes={self.start}-{'' if self.stop is None else self.stop - 1}"


class BlobStream(Protocol):
    """Bytes of a blob as they arrive from upstream.

    Attributes:
        start: position of the first byte that will arrive.
        size: bytes of the whole blob.
        is_partial: upstream sends only what was requested.
    """

    @property
    def start(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def is_partial(self) -> bool: ...

    def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """The bytes, in blocks of whatever size arrives; each is valid until the next is requested.

        Raises:
            UpstreamError: the stream stalled, broke or ended too early.
        """
        ...


class Source(Protocol):
    """Where the bytes of one blob come from; hashable, and equal to others that lead to the same place.

    Attributes:
        lazy_size: bytes of the blob, if only those that readers request are to be fetched; otherwise None.
    """

    @property
    def lazy_size(self) -> int | None: ...

    def __hash__(self) -> int: ...
    def named_size(self) -> int | None:
        """Bytes of the blob by a manifest, None if no manifest is known that names it."""
        ...

    @property
    def origin(self) -> Hashable:
        """Equal for sources whose bytes come from the same upstreams."""
        ...

    @property
    def ranges(self) -> AskForRanges | None:
        """Asks a node from which the bytes come while it receives them itself; None if there are no nodes."""
        ...

    @property
    def owner(self) -> str | None:
        """The registry that the blob counts for in the store; None if it counts for none."""
        ...

    def keep_open(self) -> AbstractContextManager[None]:
        """Keep its connections open inside the context, across reloads of the configuration."""
        ...

    def penalize(self) -> None:
        """Prefer another upstream for the next request, if there is one: the bytes were wrong."""
        ...

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[BlobStream]:
        """Request the bytes from `start` on (up to, not including, `stop` if given).

        Raises:
            UpstreamError: no response, or no useful one.
            UpstreamRefusal: upstream does not have it or does not grant it.
        """
        ...
