"""Limits failed attempts to sign in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

# A client may fail so often at once, and then once in the interval.
_BURST: Final = 5
_INTERVAL_S: Final = 10.0
# Clients that are remembered; those whose last failure is the oldest are forgotten first.
_MAX_CLIENTS: Final = 1000


class FailedAttempts:
    """Counts the failures of each client in this process.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # When the failures of a client will be forgotten, one each interval.
        self._until: OrderedDict[str, float] = OrderedDict()

    def wait(self, client: str) -> float:
        """Return the seconds until a client may try again; 0 if it may now."""
        ahead = self._until.get(client, 0.0) - self._clock()
        return max(0.0, ahead - (_BURST - 1) * _INTERVAL_S)

    def note(self, client: str) -> None:
        """Note a failure of a client."""
        self._until[client] = max(self._until.pop(client, 0.0), self._clock()) + _INTERVAL_S
        if len(self._until) > _MAX_CLIENTS:
            self._until.popitem(last=False)
