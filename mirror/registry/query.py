"""The headers of a request that decide what its response is."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from mirror.core.digest import Digest
from mirror.core.ranges import ByteRanges, Full, etag_matches, if_range_matches, parse_range


@dataclass(frozen=True, slots=True)
class Query:
    """What a GET or HEAD of a target asks. A header that is missing is None."""

    is_head: bool
    if_none_match: str | None
    range: str | None
    if_range: str | None

    @classmethod
    def of(cls, request: web.BaseRequest) -> Query:
        """The query of a request."""
        header = request.headers.get
        return cls(request.method == "HEAD", header("If-None-Match"), header("Range"), header("If-Range"))

    def is_satisfied_by(self, digest: Digest) -> bool:
        """Whether the client has the content already (304)."""
        return self.if_none_match is not None and etag_matches(self.if_none_match, digest)

    def ranges(self, digest: Digest, size: int) -> Full | ByteRanges:
        """The part of a blob that is asked for. Raises RangeNotSatisfiable."""
        if self.if_range is not None and not if_range_matches(self.if_range, f'"{digest}"'):
            return Full()
        return parse_range(self.range, size)
