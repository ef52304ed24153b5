"""Durations, times and numbers of bytes as people write them."""

import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from mirror.core.errors import InvalidQuantity

_MILLISECONDS: Final = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_BINARY: Final = {"PiB": 2**50, "TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_DECIMAL: Final = {"PB": 10**15, "TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
_BYTES: Final = {unit.lower(): factor for unit, factor in {**_BINARY, **_DECIMAL}.items()} | {"": 1}

_NUMBER: Final = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_DURATION: Final = re.compile(
    "".join(rf"(?:(?P<{unit}>{_NUMBER}){unit}\s*)?" for unit in _MILLISECONDS), re.ASCII | re.IGNORECASE
)
_SIZE: Final = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[a-z]*)", re.ASCII | re.IGNORECASE)

_DURATION_HELP: Final = "expected a duration such as 500ms, 60s, 5m, 1h30m, 7d or 2w, or 0"
_SIZE_HELP: Final = "expected a number of bytes such as 123, 10MB, 1.5GiB or 50GiB (units: B, KB to PB, KiB to PiB)"


def parse_duration(value: str | float) -> float:
    """Seconds of a duration such as `60s` or `1h30m`; only 0 needs no unit. Raises InvalidQuantity."""
    if not isinstance(value, str):
        if isinstance(value, bool) or value != 0:
            raise InvalidQuantity(value, _DURATION_HELP)
        return 0.0
    text = value.strip()
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise InvalidQuantity(value, _DURATION_HELP)
    parts = ((match[unit], factor) for unit, factor in _MILLISECONDS.items())
    return float(sum(Decimal(number) * factor for number, factor in parts if number) / 1000)


def parse_bytes(value: str | float) -> int:
    """Bytes of a size such as `50GiB`, `10GB` or `123`, rounded down. Raises InvalidQuantity."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    factor = _BYTES.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise InvalidQuantity(value, _SIZE_HELP)
    return int(Decimal(match["number"]) * factor)


def format_bytes(count: int) -> str:
    """A size for people, to one decimal: `1.5GiB`."""
    for unit, factor in _BINARY.items():
        if count >= factor:
            return f"{_plain(count / factor)}{unit}"
    return f"{count}B"


def _plain(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def format_duration(seconds: float) -> str:
    """A duration in the form `parse_duration` reads, to the millisecond: `1h30m`; weeks are given in days."""
    if not math.isfinite(seconds):
        raise InvalidQuantity(seconds, "not a finite number of seconds")
    rest = round(seconds * 1000)
    sign, rest = ("-", -rest) if rest < 0 else ("", rest)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, _MILLISECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return sign + "".join(parts) if parts else "0s"


def format_utc(when: float) -> str:
    """A time in seconds since the epoch as RFC 3339 has it, rounded up to a second: `2026-11-29T12:00:00Z`."""
    return datetime.fromtimestamp(math.ceil(when), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def about(seconds: float) -> str:
    """A duration for people, in its two largest units; 0s for one that has passed."""
    step = 3600 if seconds >= 86400 else 60 if seconds >= 3600 else 1
    return format_duration(max(0, int(seconds)) // step * step)
