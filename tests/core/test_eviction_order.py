"""The order of eviction."""

import random

from mirror.core.eviction_order import eviction_key


def test_least_recently_used_goes_first_and_pins_last():
    """Pinned blobs come after all others; then the time of the last use decides, and then the weight."""
    blobs = [(5.0, 100, False), (9.0, 1, False), (9.0, 2, False), (1.0, 1, True), (2.0, 1, True)]
    shuffled = random.Random(1).sample(blobs, len(blobs))
    assert sorted(shuffled, key=lambda blob: eviction_key(blob[0], blob[1], pinned=blob[2])) == blobs


def test_no_part_is_negative():
    """Keys are compared as packed bytes, which needs that."""
    assert all(part >= 0 for part in eviction_key(0.0, 0, pinned=False))
