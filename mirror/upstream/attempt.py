"""A request to a registry, and what became of it, as values."""

from __future__ import annotations

import enum
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from yarl import URL

from mirror.errors import UpstreamError, UpstreamRefusal


@dataclass(frozen=True)
class UpstreamRequest:
    """A request to a registry.

    Attributes:
        kind: for metrics and limits: manifest, blob, tags, referrers or check.
        repository: path of the repository, without the registry; empty for a request about the registry itself.
        rest: what follows the repository in the URL's path, for example `manifests/latest`.
        query: of the URL, encoded.
    """

    kind: str
    repository: str
    rest: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""

    def url(self, base: URL) -> URL:
        """Where it is sent."""
        names = (*self.repository.split("/"), *self.rest.split("/")) if self.repository else ("",)
        url = base.joinpath("v2", *names)
        return URL(f"{url}?{self.query}", encoded=True) if self.query else url


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
