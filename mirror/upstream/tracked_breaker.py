"""The breaker of one kind of request to an upstream, with the errors that it is about, and what other mirrors say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mirror.core.breaker import Admission, Breaker
from mirror.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable

# Failures that open a breaker at once, and those that do when they come in a row. Any other proves that the host answers.
_GRAVE = frozenset({"connect", "timeout"})
_LIGHT = frozenset({"server_error", "cut"})


@dataclass(frozen=True)
class Shut:
    """That several mirrors say that an upstream is out of order. Times are seconds on the monotonic clock.

    Attributes:
        since: the first of their failures.
        until: when the next probe may begin, by whichever of them.
        claim_at: when this process should ask whether it may probe.
        by: the mirrors, for people.
    """

    since: float
    until: float
    claim_at: float
    by: str


class TrackedBreaker:
    """A breaker that keeps the error that opened it.

    Args:
        name: of the upstream, for people.
        kind: of request; empty for connections to the upstream's own host.

    Attributes:
        shut: what several mirrors say together; None if they say nothing.
        changed: set when that changes.
        failed_at: when the last grave failure came.
        answered_at: when the last answer came, also to a probe.
    """

    def __init__(self, name: str, kind: str = "") -> None:
        self.breaker = Breaker()
        self.cause: UpstreamError | None = None
        self.name = f"{name} ({kind})" if kind else name
        self.kind = kind
        self.shut: Shut | None = None
        self.changed = asyncio.Event()
        self.failed_at = self.answered_at = float("-inf")

    @property
    def is_closed(self) -> bool:
        """Whether every request is admitted."""
        return self.breaker.is_closed and self.shut is None

    def admit(self, now: float, lasting: float) -> Admission:
        """Admit a request; raises the last error if the breaker is open.

        Args:
            lasting: seconds that failures have to last before a request is refused.
        """
        if (shut := self.shut) is not None and now - shut.since >= lasting:
            raise self._shut_error(shut, now)
        admission = self.breaker.admit(now)
        if admission is not None:
            return admission
        if self.breaker.has_failed_for(now) < lasting:
            return Admission.NORMAL
        assert self.cause is not None
        wait = max(1.0, self.breaker.wait(now))
        raise self.cause.again(f"{self.name} is out of order and not asked for now", wait)

    def admits(self, now: float, lasting: float) -> bool:
        """Whether `admit` would admit a request."""
        if self.shut is not None and now - self.shut.since >= lasting:
            return False
        return self.breaker.admits(now) or self.breaker.has_failed_for(now) < lasting

    def note(self, admission: Admission, error: UpstreamError | None, now: float) -> bool:
        """Note the outcome of a request; True if it has opened the breaker."""
        if error is None or error.reason not in _GRAVE | _LIGHT:
            self.answered_at = now
            self.breaker.succeeded()
            return False
        if error.reason in _GRAVE:
            self.failed_at = now
        opened = self.breaker.failed(now, admission, grave=error.reason in _GRAVE)
        self.cause = error if opened else self.cause
        return opened

    def probe_failed(self, error: UpstreamError, now: float) -> None:
        """Keep the breaker open after a probe that failed with any error, and reserve the next trial for the prober."""
        if error.reason in _GRAVE:
            self.failed_at = now
        self.breaker.failed(now, Admission.TRIAL)
        self.breaker.reserve()
        self.cause = error

    def probe_answered(self, now: float) -> None:
        """Admit one request after a probe that was answered."""
        self.shut, self.answered_at = None, now
        self.breaker.retry(now)

    def _shut_error(self, shut: Shut, now: float) -> UpstreamError:
        wait, kind = max(1.0, shut.until - now), UpstreamTimeout if self.kind else UpstreamUnreachable
        # Without the names of the nodes: clients see it.
        error = kind(f"{self.name} is not asked for now: nodes of the cluster cannot reach it", retry_after=wait)
        error.sent = False
        return error
