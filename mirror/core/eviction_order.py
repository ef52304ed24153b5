"""The order in which blobs are evicted. Imports nothing, so that a scan of the store starts at once."""

from __future__ import annotations


def eviction_key(last_used: float, weight: int, *, pinned: bool) -> tuple[float, float, float]:
    """Return the sort key of a blob by its usage, no part of it negative: the blob with the smallest key is evicted first.

    The order is least recently used first, pinned blobs last, and the lighter of two first: a manifest before its layers. Another
    policy is another function.

    Args:
        last_used: seconds since the epoch.
        weight: bytes.
    """
    return pinned, last_used, weight
