"""For whom, and how urgently, something is asked of upstream: goes with the task that asks."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from mirror.core.counts import ClientCounts
from mirror.core.urgency import Urgency


def _by_client() -> Urgency:
    return Urgency.CLIENT


# Called whenever it matters: a download becomes more urgent when a client joins it, and less so when all have left.
urgency: ContextVar[Callable[[], Urgency]] = ContextVar("urgency", default=_by_client)
# The client whose request is being served, if it is one's.
client: ContextVar[ClientCounts | None] = ContextVar("client", default=None)
