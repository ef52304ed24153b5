"""The client and the urgency of an upstream request, as context variables of its task."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from mirror.core.counts import ClientCounts
from mirror.core.urgency import Urgency


def _by_client() -> Urgency:
    return Urgency.CLIENT


# Evaluated at each use: a download becomes more urgent when a client joins it, and less when all have left.
urgency: ContextVar[Callable[[], Urgency]] = ContextVar("urgency", default=_by_client)
# The client whose request is handled, if any.
client: ContextVar[ClientCounts | None] = ContextVar("client", default=None)
