"""Byte ranges and conditions of requests (RFC 9110 sections 13.1 and 14)."""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from mirror.core.digest import Digest
from mirror.core.errors import InvalidRange, RangeNotSatisfiable

_MAX_RANGES: Final = 16
_MAX_DIGITS: Final = 18
_HUGE: Final = 10**_MAX_DIGITS
_UNIT: Final = re.compile(r"\s*bytes\s*=(?P<specs>.*)", re.ASCII | re.IGNORECASE)
_SPEC: Final = re.compile(r"(?P<first>[0-9]*)-(?P<last>[0-9]*)", re.ASCII)
_CONTENT_RANGE: Final = re.compile(
    rf"\s*bytes\s+(?P<first>[0-9]{{1,{_MAX_DIGITS}}})-(?P<last>[0-9]{{1,{_MAX_DIGITS}}})"
    rf"/(?P<size>[0-9]{{1,{_MAX_DIGITS}}}|\*)\s*",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Full:
    """No range applies: the response is the whole content."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes from `start` up to, but not including, `stop`; never empty."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.stop - self.start


ByteRanges: TypeAlias = tuple[ByteRange, ...]

FULL: Final = Full()


def parse_range(header: str | None, size: int) -> Full | ByteRanges:
    """The ranges of a Range header within content of `size` bytes; FULL if none applies.

    A header that is not understood is ignored, as RFC 9110 section 14.2 requires. So is one with more than 16
    ranges, or with several that ask for more than the content or of which none can be served: clients take a
    full answer there, but no 416. Raises RangeNotSatisfiable for a single range without a byte in it.
    """
    unit = _UNIT.fullmatch(header) if header is not None else None
    if unit is None:
        return FULL
    specs = [spec for part in unit["specs"].split(",") if (spec := part.strip(" \t"))]
    matches = [match for spec in specs if (match := _SPEC.fullmatch(spec)) and spec != "-"]
    if not matches or len(matches) != len(specs) or len(specs) > _MAX_RANGES:
        return FULL
    resolved = [_resolve(match["first"], match["last"], size) for match in matches]
    if len(resolved) == 1:
        return _single(resolved[0], specs[0], size)
    ranges = tuple(one for one in resolved if one is not None)
    if not ranges or sum(one.length for one in ranges) > size:
        return FULL
    return ranges


def _single(resolved: ByteRange | None, spec: str, size: int) -> Full | ByteRanges:
    if resolved is not None:
        return (resolved,)
    # The last n bytes of nothing are all of it, but no Content-Range can say so.
    if size == 0 and spec.startswith("-") and spec.strip("-0"):
        return FULL
    raise RangeNotSatisfiable(spec, f"no such bytes in {size}")


def _resolve(first: str, last: str, size: int) -> ByteRange | None:
    """The part of the content that is meant, or None if there is no byte in it."""
    if first:
        start = _number(first)
        stop = min(_number(last) + 1, size) if last else size
    else:
        start, stop = max(size - _number(last), 0), size
    return ByteRange(start, stop) if start < stop else None


def _number(digits: str) -> int:
    """An integer that is not worth more digits than any content has bytes."""
    digits = digits.lstrip("0")
    return _HUGE if len(digits) > _MAX_DIGITS else int(digits or "0")


def content_range(part: ByteRange | None, size: int) -> str:
    """The Content-Range of a 206, or with None that of a 416 (RFC 9110 section 14.4)."""
    return f"bytes */{size}" if part is None else f"bytes {part.start}-{part.stop - 1}/{size}"


def parse_content_range(text: str) -> tuple[int, int, int | None]:
    """Start, stop (exclusive) and size (None if unknown) of a 206's Content-Range. Raises InvalidRange."""
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise InvalidRange(text, "not a Content-Range of bytes")
    start, stop = int(match["first"]), int(match["last"]) + 1
    size = None if match["size"] == "*" else int(match["size"])
    if start >= stop or (size is not None and stop > size):
        raise InvalidRange(text, "contradicts itself")
    return start, stop, size


def if_range_matches(header: str | None, etag: str) -> bool:
    """Whether If-Range lets a range apply: it is absent, or is this strong ETag, given in its quotes.

    A date or a weak tag never does, so the answer is the full content (RFC 9110 section 13.1.5).
    """
    return header is None or (header.strip() == etag and etag.startswith('"'))


_MEMBER: Final = re.compile(r'(?:^|,)\s*(?:(?:W/)?"(?P<quoted>[^"]*)"|(?P<bare>[^\s,"]+))\s*(?=,|$)')


def etag_matches(header: str | None, digest: Digest) -> bool:
    """Whether an If-None-Match header names this digest, so that the answer is 304.

    The comparison is weak, the header may be a list or `*`; an unquoted digest counts, as elsewhere.
    """
    if header is None:
        return False
    if header.strip() == "*":
        return True
    tag = str(digest)
    return any(tag in (match["quoted"], match["bare"]) for match in _MEMBER.finditer(header))
