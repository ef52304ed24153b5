"""What became of a request to an upstream, as a value."""

from __future__ import annotations

import enum
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from mirror.errors import UpstreamError, UpstreamRefusal

T = TypeVar("T")


class Place(enum.Enum):
    """The host that a request is with."""

    REGISTRY = enum.auto()
    TOKEN_HOST = enum.auto()
    REDIRECT_TARGET = enum.auto()


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """The outcome of one request.

    Attributes:
        place: the host that the request ended with.
        result: what was made of the response, unless there is an error.
        error: an outage, or upstream's refusal.
        resources: what stays open for the result: its connection, and its place among the limited ones.
    """

    place: Place
    result: T | None = None
    error: UpstreamError | UpstreamRefusal | None = None
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def is_answer(self) -> bool:
        """Whether upstream has answered: with what was asked for, or with a refusal."""
        return not isinstance(self.error, UpstreamError)

    def value(self) -> T:
        """The result; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast("T", self.result)

    async def close(self) -> None:
        """Release the resources."""
        await self.resources.aclose()
