"""How one upstream does: whether it is asked at all, and what is said when it is not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mirror.core.breaker import Admission, Breaker
from mirror.core.pull_quota import PullQuota, QuotaPermit
from mirror.core.ratelimit import RateLimit
from mirror.errors import (
    CredentialsRefused,
    UpstreamBusy,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRefusal,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.metrics import Metrics

# Failures that open a breaker at once, and those that do when they come in a row. Any other is an answer, if not a good one.
_GRAVE = frozenset({"connect", "timeout"})
_LIGHT = frozenset({"server_error", "cut"})
# Seconds that the failures of an upstream have to last that no other can take the place of: to do without it is an outage.
# Work that nobody waits for does without it at once.
_LASTING = 5.0
# What work that nobody waits for needs.
_BACKGROUND = ("manifest", "blob", "token")


class TrackedBreaker:
    """A breaker that remembers why it is open."""

    def __init__(self, name: str) -> None:
        self.breaker = Breaker()
        self.cause: UpstreamError | None = None
        self.name = name

    def admit(self, now: float, lasting: float) -> Admission:
        """Leave to ask; raises what went wrong last time if there is none.

        Args:
            lasting: seconds that failures have to last before anybody is refused.
        """
        admission = self.breaker.admit(now)
        if admission is not None:
            return admission
        if self.breaker.has_failed_for(now) < lasting:
            return Admission.NORMAL
        assert self.cause is not None
        wait = max(1.0, self.breaker.wait(now))
        raise self.cause.again(f"{self.name} is out of order and not asked for now", wait)

    def note(self, admission: Admission, error: UpstreamError | None, now: float) -> bool:
        """Note what came of it; True if that has opened the breaker."""
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


@dataclass(frozen=True, slots=True)
class _Leave:
    """Leave for one request, to be given back with what came of it."""

    kind: str
    permit: QuotaPermit
    admissions: dict[TrackedBreaker, Admission]


class Health:
    """Keeps the breakers and the pull limit of one upstream, and tells the world.

    Each kind of request has a breaker of its own: one kind that fails says nothing of the others.

    Attributes:
        state: for people: what came of the last request.
        alone: whether there is no other upstream to turn to.
        own: for connections to the upstream's own host.
        content: for where it redirects to for the content of blobs.
        opened: called when the upstream itself has been found out of order; it sees to it that it is probed.
    """

    def __init__(
        self,
        registry: str,
        upstream: str,
        metrics: Metrics,
        opened: Callable[[TrackedBreaker], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = "not asked yet"
        self.alone = False
        self.own = TrackedBreaker(upstream)
        self.content = TrackedBreaker(f"where {upstream} redirects to")
        self.pull_quota = PullQuota()
        self.clock = clock
        self.opened = opened
        self._kinds: dict[str, TrackedBreaker] = {}
        self._upstream = upstream
        self._registry = registry
        self._metrics = metrics
        self._doubted = 0.0
        self._doubts = 0

    @contextlib.contextmanager
    def attempt(self, kind: str, method: str) -> Iterator[None]:
        """Let one request through and note what comes of it.

        Raises:
            UpstreamError: at once, if the upstream is out of order for this kind or limits the rate of such requests.
        """
        leave = self._let_in(kind, method)
        try:
            yield
        except UpstreamError as error:
            self._failed(error, leave)
            raise
        except UpstreamRefusal:
            self._answered(leave, content=False)
            raise
        except BaseException:
            # Neither a word from upstream nor a fault of its: who asked has given up.
            self._give_back(leave)
            raise
        else:
            self._answered(leave, content=True)

    @contextlib.contextmanager
    def token(self) -> Iterator[None]:
        """Let one request for a token through and note what comes of it.

        Raises:
            UpstreamError: at once, if where the upstream gets its tokens is out of order.
        """
        guard, admission = self.guard("token"), None
        try:
            admission = guard.admit(self.clock(), self._lasting)
            yield
        except UpstreamError as error:
            error.at_token_host = True
            if admission is not None:
                self._note(guard, admission, error)
            raise
        except BaseException as error:
            if admission is not None and isinstance(error, UpstreamRefusal):
                self._note(guard, admission, None)
            elif admission is not None:
                guard.breaker.released(admission)
            raise
        else:
            self._note(guard, admission, None)

    def guard(self, kind: str) -> TrackedBreaker:
        """The breaker of one kind of request."""
        if kind not in self._kinds:
            self._kinds[kind] = TrackedBreaker(f"{self._upstream} ({kind})")
        return self._kinds[kind]

    @property
    def probed_guards(self) -> list[TrackedBreaker]:
        """The breakers that a probe of the upstream itself can help to close."""
        return [self.own, *self._kinds.values()]

    def limits(self, limit: RateLimit | None, remaining: RateLimit | None) -> None:
        """Note what an answer says of the pull limit, if anything."""
        self._metrics.pull_limit(self._registry, limit and limit.value, remaining and remaining.value)
        if remaining is not None:
            self.pull_quota.note(remaining, self.clock())

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
        """Whether there is no reason to do without it for blobs."""
        guards = (self.own, self.guard("blob"), self.content)
        return all(guard.breaker.is_closed for guard in guards) and not self.doubted_until

    @property
    def serves_background(self) -> bool:
        """Whether work that nobody waits for may turn to it: it is sound, or may be found so by asking.

        After an outage that is so once a probe was answered: at night no client comes to find it out.
        """
        now = self.clock()
        guards = (self.own, self.content, *(self.guard(kind) for kind in _BACKGROUND))
        return all(guard.breaker.admits(now) for guard in guards) and not self.doubted_until

    def probed(self, error: UpstreamError | None) -> None:
        """Note what came of a probe."""
        if error is None:
            self._tell("recovering", up=True)
        else:
            self._tell(f"failing: {error}", up=False)

    @property
    def _lasting(self) -> float:
        return _LASTING if self.alone else 0.0

    def _let_in(self, kind: str, method: str) -> _Leave:
        now = self.clock()
        permit = self.pull_quota.spend(kind, method, now)
        if not isinstance(permit, QuotaPermit):
            text = f"{self._upstream} limits the rate of pulls, and is not asked for now"
            raise UpstreamRateLimited(text, retry_after=permit)
        leave = _Leave(kind, permit, {})
        guards = [self.own, self.guard(kind)]
        if (kind, method) == ("blob", "GET"):
            guards.append(self.content)
        try:
            for guard in guards:
                leave.admissions[guard] = guard.admit(now, self._lasting)
        except UpstreamError:
            self._give_back(leave)
            raise
        return leave

    def _failed(self, error: UpstreamError, leave: _Leave) -> None:
        if isinstance(error, UpstreamBusy):
            self._give_back(leave)
            return
        if isinstance(error, UpstreamRateLimited):
            error.retry_after = self.pull_quota.refused(leave.permit, leave.kind, error.retry_after, self.clock())
        else:
            self.pull_quota.released(leave.permit)
        failing, answering = self._blamed(error, leave.kind)
        for guard, admission in leave.admissions.items():
            if guard is failing:
                self._note(guard, admission, error)
            elif guard in answering:
                self._note(guard, admission, None)
            else:
                guard.breaker.released(admission)
        if isinstance(error, CredentialsRefused):
            self._tell(f"refuses the credentials: {error}", up=True)
        else:
            self._tell(f"failing: {error}", up=False)

    def _blamed(self, error: UpstreamError, kind: str) -> tuple[TrackedBreaker | None, tuple[TrackedBreaker, ...]]:
        """Whose failure it is, None if that has been noted, and who has answered all the same."""
        own, asked = self.own, self.guard(kind)
        if error.elsewhere:
            return self.content, (own, asked)
        if error.at_token_host:
            return None, (own,)
        if isinstance(error, UpstreamUnreachable):
            return own, ()
        return asked, () if isinstance(error, UpstreamTimeout) else (own,)

    def _note(self, guard: TrackedBreaker, admission: Admission, error: UpstreamError | None) -> None:
        opened = guard.note(admission, error, self.clock())
        if opened and guard is not self.content:
            self.opened(guard)

    def _answered(self, leave: _Leave, *, content: bool) -> None:
        self.pull_quota.answered(leave.permit, self.clock())
        for guard, admission in leave.admissions.items():
            if content or guard is not self.content:
                self._note(guard, admission, None)
            else:
                guard.breaker.released(admission)
        self._tell("up", up=True)

    def _give_back(self, leave: _Leave) -> None:
        self.pull_quota.released(leave.permit)
        for guard, admission in leave.admissions.items():
            guard.breaker.released(admission)

    def _tell(self, state: str, *, up: bool) -> None:
        self.state = state
        self._metrics.upstream_up.labels(self._registry, self._upstream).set(1 if up else 0)
