"""The mirror's short time limits, moved far away.

After one of these limits a mirror does something else than before: it answers without a note in the index, or sends a request
twice. On a machine that is busy with other work milliseconds become seconds, and a test that counts requests would fail for that
reason alone. A test of one of these limits sets that limit itself.
"""

from __future__ import annotations

import functools
import importlib

from tests.support.waiting import LIMIT

# Module and name of each limit in seconds.
_LIMITS = (
    ("mirror.cache.context", "_NOTE_TIMEOUT_S"),
    ("mirror.storage.write_behind", "_TIMEOUT_S"),
    ("mirror.storage.coordination", "_TURN_TIMEOUT_S"),
    ("mirror.cluster.turns", "CHECK_TIMEOUT_S"),
    ("mirror.cluster.accounts", "TURN_S"),
)


def move_limits() -> None:
    """Move the limits in this process, and in what is forked from it."""
    for module, name in _LIMITS:
        found = importlib.import_module(module)
        if not isinstance(getattr(found, name), float):
            raise TypeError(f"{module}.{name} is no limit in seconds")
        setattr(found, name, LIMIT)
    graph = importlib.import_module("mirror.service.graph")
    graph.Limits = functools.partial(graph.Limits, headers=LIMIT, hedge=LIMIT)
    # A mirror with a bucket imports its client later, with this in place.
    address = importlib.import_module("mirror.objects.address")
    address.BucketAddress = functools.partial(address.BucketAddress, answer_s=LIMIT, stall_s=LIMIT)
