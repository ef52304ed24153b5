"""What a notification says about an event."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from mirror.cache.tag_moves import HeldMove
from mirror.cache.tag_store import Move
from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_size, reach


def kind_of(event: Move | HeldMove) -> str:
    """Return the kind of an event."""
    return "tag_held_back" if isinstance(event, HeldMove) else "tag_moved"


def describe(files: BlobFiles, event: Move | HeldMove) -> bytes:
    """Return the body of the notification of an event, in JSON. Blocks on files."""
    content = {
        "event": kind_of(event),
        "image": f"{event.repository}:{event.tag}",
        "registry": event.repository.registry,
        "repository": event.repository.path,
        "tag": str(event.tag),
        "old": None if event.old is None else {"digest": str(event.old), "size": _size(files, event.old)},
        "new": {"digest": str(event.new), "size": _size(files, event.new)},
        "time": _iso(event.when),
    }
    if isinstance(event, HeldMove):
        content |= {"reason": event.reason.value, "until": None if event.until is None else _iso(event.until)}
    return json.dumps(content).encode()


def _size(files: BlobFiles, digest: Digest) -> int | None:
    """Return the bytes that are cached of an image; None if its manifest is not cached, or the store cannot be read."""
    try:
        return held_size(files, reach(files, [digest])) if files.size(digest) is not None else None
    except (StorageError, OSError):
        return None


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
