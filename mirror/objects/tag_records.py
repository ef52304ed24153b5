"""The records of tags in a bucket: what a tag named last, as JSON. Whoever writes to the bucket may have written anything."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.manifest import MAX_MANIFEST_BYTES

MAX_TAG_BYTES: Final = 4096
# RFC 6838 section 4.2 has names of at most 127 characters on each side.
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)


class InvalidTagRecord(InvalidInput):
    """Not the record of a tag."""

    what = "record of a tag"


def write_tag(record: TagRecord) -> bytes:
    """Return the object for a record."""
    value = {"digest": str(record.digest), "media_type": record.media_type, "size": record.size}
    return json.dumps({**value, "checked": record.checked, "changed": record.changed}).encode()


def read_tag(data: bytes, now: float) -> TagRecord:
    """Return the record of an object.

    Args:
        now: in seconds since the epoch; a time after it counts as now, so that no record is fresh for longer than a new one.

    Raises:
        InvalidInput: it is no record of a tag.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidTagRecord(data, "is no JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("digest"), str):
        raise InvalidTagRecord(data, "has no digest")
    media_type, size = value.get("media_type"), value.get("size")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidTagRecord(data, "has no media type")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_MANIFEST_BYTES:
        raise InvalidTagRecord(data, "has no size of a manifest")
    checked, changed = _time(value, "checked", now), _time(value, "changed", now)
    return TagRecord(Digest.parse(value["digest"]), media_type, size, checked, changed, 0.0)


def _time(value: dict[str, Any], name: str, now: float) -> float:
    found: Any = value.get(name)
    try:
        seconds = float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan
    except OverflowError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidTagRecord(value, f"has no time for {name}")
    return min(seconds, now)
