"""How one upstream does: whether it is asked at all, and what is said when it is not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from mirror.core.breaker import Admission, Breaker
from mirror.core.budget import Budget, Spending
from mirror.core.ratelimit import RateLimit
from mirror.errors import (
    CredentialsRefused,
    UpstreamAnswer,
    UpstreamBusy,
    UpstreamError,
    UpstreamRateLimited,
)
from mirror.metrics import Metrics

# Failures that open a breaker at once, and those that do when they come in a row. Any other is an answer, if not a good one.
_GRAVE = frozenset({"connect", "timeout"})
_LIGHT = frozenset({"server_error", "cut"})


class Guard:
    """A breaker that remembers why it is open."""

    def __init__(self, name: str) -> None:
        self.breaker = Breaker()
        self.cause: UpstreamError | None = None
        self._name = name

    def admit(self, now: float) -> Admission:
        """Leave to ask; raises what went wrong last time if there is none."""
        admission = self.breaker.admit(now)
        if admission is not None:
            return admission
        assert self.cause is not None
        wait = max(1.0, self.breaker.wait(now))
        raise self.cause.again(f"{self._name} is out of order and not asked for now", wait)

    def note(self, admission: Admission, error: UpstreamError | None, now: float) -> bool:
        """Note what came of it; True if nothing else is let through from now on."""
        if error is None or error.reason not in _GRAVE | _LIGHT:
            self.breaker.succeeded()
            return False
        opened = self.breaker.failed(now, admission, grave=error.reason in _GRAVE)
        self.cause = error if opened else self.cause
        return opened

    def still(self, error: UpstreamError, now: float) -> None:
        """A probe has failed, whatever it met; the next one is the prober's, too."""
        self.breaker.failed(now, Admission.TRIAL)
        self.breaker.reserve()
        self.cause = error


class Health:
    """Keeps the breakers and the pull limit of one upstream, and tells the world.

    Attributes:
        state: for people: what came of the last request.
        own: for the upstream's own host and where it gets its tokens.
        content: for where it redirects to for the content of blobs.
        opened: called when the upstream itself has been found out of order; it sees to it that it is probed.
    """

    def __init__(
        self,
        registry: str,
        upstream: str,
        metrics: Metrics,
        opened: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = "not asked yet"
        self.own = Guard(upstream)
        self.content = Guard(f"where {upstream} redirects to")
        self.budget = Budget()
        self.clock = clock
        self.opened = opened
        self._upstream = upstream
        self._registry = registry
        self._metrics = metrics
        self._doubted = 0.0
        self._doubts = 0

    @contextlib.contextmanager
    def attempt(self, kind: str, method: str) -> Iterator[None]:
        """Let one request through and note what comes of it.

        Raises:
            UpstreamError: at once, if the upstream is out of order or limits the rate of such requests.
        """
        own, content, spending = self._let_in(kind, method)
        try:
            yield
        except UpstreamError as error:
            self._failed(error, kind, own, content, spending)
            raise
        except UpstreamAnswer:
            self._answered(own, None, spending)
            self._released(None, content)
            raise
        except BaseException:
            # Neither a word from upstream nor a fault of its: who asked has given up.
            self._released(own, content)
            self.budget.released(spending)
            raise
        else:
            self._answered(own, content, spending)

    def limits(self, limit: RateLimit | None, remaining: RateLimit | None) -> None:
        """Note what an answer says of the pull limit, if anything."""
        if limit is not None:
            self._metrics.upstream_ratelimit_limit.labels(self._registry).set(limit.value)
        if remaining is not None:
            self._metrics.upstream_ratelimit_remaining.labels(self._registry).set(remaining.value)
            self.budget.note(remaining, self.clock())

    def body_ended(self, error: UpstreamError | None) -> None:
        """Note how the body of a blob ended. After a failure another upstream is better asked first, for a while."""
        if error is None:
            self._doubts = 0
            return
        self._doubts += 1
        self._doubted = self.clock() + min(30.0, 2.0 ** min(self._doubts - 1, 5))
        self._tell(f"failing: {error}", up=False)

    @property
    def doubted_until(self) -> float:
        """Until when its bodies are doubted; 0 if they are not."""
        return self._doubted if self._doubted > self.clock() else 0.0

    @property
    def is_sound(self) -> bool:
        """Whether there is no reason to do without it."""
        return self.own.breaker.is_closed and self.content.breaker.is_closed and not self.doubted_until

    @property
    def serves_background(self) -> bool:
        """Whether work that nobody waits for may turn to it: it is sound, or may be found so by asking.

        After an outage that is so once a probe was answered: at night no client comes to find it out.
        """
        now = self.clock()
        return self.own.breaker.admits(now) and self.content.breaker.admits(now) and not self.doubted_until

    def probed(self, error: UpstreamError | None) -> None:
        """Note what came of a probe."""
        if error is None:
            self._tell("recovering", up=True)
        else:
            self._tell(f"failing: {error}", up=False)

    def _let_in(self, kind: str, method: str) -> tuple[Admission, Admission | None, Spending]:
        now = self.clock()
        spending = self.budget.spend(kind, method, now)
        if not isinstance(spending, Spending):
            text = f"{self._upstream} limits the rate of pulls, and is not asked for now"
            raise UpstreamRateLimited(text, retry_after=spending)
        own = None
        try:
            own = self.own.admit(now)
            return own, self.content.admit(now) if (kind, method) == ("blob", "GET") else None, spending
        except UpstreamError:
            self._released(own, None)
            self.budget.released(spending)
            raise

    def _failed(self, error: UpstreamError, kind: str, own: Admission, content: Admission | None, spending: Spending) -> None:
        now = self.clock()
        if isinstance(error, UpstreamBusy):
            self._released(own, content)
            self.budget.released(spending)
            return
        if isinstance(error, UpstreamRateLimited):
            error.retry_after = self.budget.refused(spending, kind, error.retry_after, now)
        else:
            self.budget.released(spending)
        if self.own.note(own, None if error.elsewhere else error, now):
            self.opened()
        if content is not None and error.elsewhere:
            self.content.note(content, error, now)
        else:
            self._released(None, content)
        if isinstance(error, CredentialsRefused):
            self._tell(f"refuses the credentials: {error}", up=True)
        else:
            self._tell(f"failing: {error}", up=False)

    def _answered(self, own: Admission, content: Admission | None, spending: Spending) -> None:
        now = self.clock()
        self.budget.answered(spending, now)
        self.own.note(own, None, now)
        if content is not None:
            self.content.note(content, None, now)
        self._tell("up", up=True)

    def _released(self, own: Admission | None, content: Admission | None) -> None:
        if own is not None:
            self.own.breaker.released(own)
        if content is not None:
            self.content.breaker.released(content)

    def _tell(self, state: str, *, up: bool) -> None:
        self.state = state
        self._metrics.upstream_up.labels(self._registry, self._upstream).set(1 if up else 0)
