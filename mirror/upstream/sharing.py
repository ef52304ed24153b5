"""What a cluster hangs into the health of an upstream, so that several mirrors share it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from mirror.upstream.tracked_breaker import TrackedBreaker


class QuotaChanged(Protocol):
    """Tells other mirrors of a pull limit."""

    def __call__(self, *, is_urgent: bool) -> None: ...


@dataclass(frozen=True)
class BreakerSharing:
    """Shares the breakers of an upstream.

    Attributes:
        look: awaited before a request, to learn what other mirrors say.
        noted: called after the outcome of a request was noted.
        turn: waits until this mirror may probe for all; False if nobody has to any more.
        probed: awaited after such a probe, with whether it was answered.
    """

    look: Callable[[], Awaitable[None]]
    noted: Callable[[TrackedBreaker], None]
    turn: Callable[[TrackedBreaker], Awaitable[bool]]
    probed: Callable[[TrackedBreaker, bool], Awaitable[None]]
