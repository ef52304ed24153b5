"""Whether one upstream may be asked: its circuit breakers and its pull limit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from mirror.core.breaker import Admission
from mirror.core.pull_quota import DEFAULT_WINDOW_S, PullQuota, QuotaPermit, RateLimit
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
from mirror.upstream.attempt import Attempt, Place
from mirror.upstream.sharing import BreakerSharing, QuotaChanged
from mirror.upstream.time_of_day import UpstreamTime
from mirror.upstream.tracked_breaker import Shut, TrackedBreaker

T = TypeVar("T")

SHARED_KINDS = ("manifest", "blob", "tags", "referrers")
"""The kinds of request whose breakers a cluster shares: they go to the upstream's own host, which a probe asks."""

# How long failures have to last before requests are refused, if there is no other upstream: that is an outage. Background work
# is refused at once.
_LASTING_S = 5.0
# A body that breaks has the upstream asked last for blobs, for 1, 2, 4, … seconds.
_MAX_DOUBT_S = 30.0
_MAX_DOUBLINGS = 5
_NOT_ASKED = "not asked yet"
# The kinds of request that background work needs.
_BACKGROUND = ("manifest", "blob", "token")


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission for one request. It is given back with the outcome."""

    kind: str
    quota: QuotaPermit
    admissions: dict[TrackedBreaker, Admission]


class Health:
    """The breakers and the pull limit of one upstream. Outlives reloads.

    Each kind of request has a breaker of its own: failures of one kind say nothing about the others.

    Attributes:
        registry: name of the registry.
        state: for people: the outcome of the last request.
        alone: whether there is no other upstream for the registry.
        time_of_day: the upstream's, compared with this machine's.
        own: breaker of the upstream's own host.
        content: breaker of the hosts that it redirects to for blobs.
        opened: called when a breaker of the upstream itself opens; begins to probe.
        received: bytes of bodies that it has sent so far.
        quota_source: whom its pull limit is counted for, as it says; empty if it has not said so.
        before_pull: awaited before a request that counts as a pull, to learn what other mirrors know of the limit.
        quota_changed: called when something is learned of the pull limit; urgent after a 429.
        sharing: shares the breakers with other mirrors; None without any.
    """

    def __init__(self, registry: str, upstream: str, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry
        self.state = _NOT_ASKED
        self.alone = False
        self.own = TrackedBreaker(upstream)
        self.content = TrackedBreaker(f"where {upstream} redirects to")
        self.pull_quota = PullQuota()
        self.clock = clock
        self.time_of_day = UpstreamTime(clock)
        self.opened: Callable[[TrackedBreaker], None] | None = None
        self.received = 0
        self.quota_source = ""
        self.before_pull: Callable[[], Awaitable[None]] | None = None
        self.quota_changed: QuotaChanged | None = None
        self.sharing: BreakerSharing | None = None
        self._kinds: dict[str, TrackedBreaker] = {}
        self._upstream = upstream
        self._metrics = metrics
        self._doubted_until = 0.0
        self._doubts = 0

    def admit(self, kind: str, method: str) -> Permit:
        """Admit a request. The caller calls `note` or `release` with the permit.

        Raises:
            UpstreamError: the upstream is out of order for this kind, or limits the rate of such requests.
        """
        now = self.clock()
        quota = self.pull_quota.spend(kind, method, now)
        if not isinstance(quota, QuotaPermit):
            text = f"{self._upstream} limits the rate of pulls, and is not asked for now"
            raise UpstreamRateLimited(text, retry_after=quota)
        permit = Permit(kind, quota, {})
        try:
            for guard in self._guards(kind, method):
                permit.admissions[guard] = guard.admit(now, self._lasting)
        except UpstreamError:
            self.release(permit)
            raise
        return permit

    def admits(self, kind: str, method: str) -> bool:
        """Whether `admit` would admit a request."""
        now = self.clock()
        guards = self._guards(kind, method)
        return self.pull_quota.admits(kind, method, now) and all(guard.admits(now, self._lasting) for guard in guards)

    def _guards(self, kind: str, method: str) -> list[TrackedBreaker]:
        content = [self.content] if (kind, method) == ("blob", "GET") else []
        return [self.own, self.guard(kind), *content]

    def release(self, permit: Permit) -> None:
        """Give back the permit of a request without an outcome: it was cancelled, or never sent."""
        self.pull_quota.released(permit.quota)
        for guard, admission in permit.admissions.items():
            guard.breaker.released(admission)

    def note(self, permit: Permit, attempt: Attempt[T]) -> Attempt[T]:
        """Note the outcome of a request; returns it with the time after which a rate limit allows the next one."""
        error = attempt.error
        if error is None or isinstance(error, UpstreamRefusal):
            self._note_answer(permit, with_content=error is None)
        elif isinstance(error, UpstreamBusy):
            self.release(permit)
        elif isinstance(error, UpstreamRateLimited):
            wait = self.pull_quota.refused(permit.quota, permit.kind, error.retry_after, self.clock())
            self._note_failure(permit, error, attempt.place)
            if self.quota_changed is not None:
                self.quota_changed(is_urgent=True)
            return replace(attempt, error=error.delayed(wait))
        else:
            self.pull_quota.released(permit.quota)
            self._note_failure(permit, error, attempt.place)
        return attempt

    @contextlib.contextmanager
    def token(self) -> Iterator[None]:
        """Admit one request for a token and note its outcome.

        Raises:
            UpstreamError: the token host is out of order.
        """
        guard = self.guard("token")
        admission = guard.admit(self.clock(), self._lasting)
        try:
            yield
        except UpstreamError as error:
            self._note_breaker(guard, admission, error)
            raise
        except UpstreamRefusal:
            self._note_breaker(guard, admission, None)
            raise
        except BaseException:
            guard.breaker.released(admission)
            raise
        self._note_breaker(guard, admission, None)

    def guard(self, kind: str) -> TrackedBreaker:
        """The breaker of one kind of request."""
        if kind not in self._kinds:
            self._kinds[kind] = TrackedBreaker(self._upstream, kind)
        return self._kinds[kind]

    @property
    def probed_guards(self) -> list[TrackedBreaker]:
        """The breakers that a probe of the upstream itself can help to close."""
        return [self.own, *self._kinds.values()]

    @property
    def shared_guards(self) -> list[TrackedBreaker]:
        """The breakers that a cluster shares."""
        return [self.own, *(self.guard(kind) for kind in SHARED_KINDS)]

    def limits(self, limit: RateLimit | None, remaining: RateLimit | None) -> None:
        """Note the pull limit that a response reports."""
        window = (remaining and remaining.window) or DEFAULT_WINDOW_S
        self._metrics.pull_limit(self.registry, limit and limit.value, remaining and remaining.value, window)
        if remaining is not None:
            self.pull_quota.note(remaining, self.clock())
            if self.quota_changed is not None:
                self.quota_changed(is_urgent=remaining.value == 0)

    async def look_ahead(self, kind: str, method: str) -> None:
        """Learn what other mirrors say of the upstream, and of the pull limit before a request that counts."""
        if self.sharing is not None:
            await self.sharing.look()
        if self.before_pull is not None and (kind, method) == ("manifest", "GET"):
            await self.before_pull()

    def body_ended(self, error: UpstreamError | None) -> None:
        """Note how the body of a blob ended. After an error other upstreams are asked first, for a while."""
        if error is None:
            self._doubts = 0
            return
        self._doubts += 1
        self._doubted_until = self.clock() + min(_MAX_DOUBT_S, 2.0 ** min(self._doubts - 1, _MAX_DOUBLINGS))
        self._publish(f"failing: {error}", up=False)

    @property
    def doubted_until(self) -> float:
        """Until when others are asked first for blobs; 0 if they are not."""
        return self._doubted_until if self._doubted_until > self.clock() else 0.0

    @property
    def was_asked(self) -> bool:
        """Whether `state` is the outcome of a request."""
        return self.state != _NOT_ASKED

    @property
    def is_sound(self) -> bool:
        """Whether nothing speaks against asking it for blobs."""
        guards = (self.own, self.guard("blob"), self.content)
        return all(guard.is_closed for guard in guards) and not self.doubted_until

    @property
    def serves_background(self) -> bool:
        """Whether background work may ask it: it is sound, or may be found so by asking.

        After an outage the latter holds once a probe was answered: at night no client comes to find that out.
        """
        now = self.clock()
        guards = (self.own, self.content, *(self.guard(kind) for kind in _BACKGROUND))
        return all(guard.admits(now, 0.0) for guard in guards) and not self.doubted_until

    def probed(self, error: UpstreamError | None) -> None:
        """Note the outcome of a probe."""
        if error is None:
            self._publish("recovering", up=True)
        else:
            self._publish(f"failing: {error}", up=False)

    def shut(self, guard: TrackedBreaker, shut: Shut) -> None:
        """Refuse the requests of a breaker by the word of several mirrors, and take part in the probes."""
        was_shut, guard.shut = guard.shut is not None, shut
        guard.changed.set()
        if not was_shut:
            self._publish(f"shut: {shut.by} cannot reach {guard.name}", up=False)
            if self.opened is not None:
                self.opened(guard)

    def reopen(self, guard: TrackedBreaker, *, answers: bool) -> None:
        """Decide about the requests of a breaker alone again; `answers`: another mirror has got an answer."""
        if answers:
            guard.breaker.retry(self.clock())
            self._publish("recovering", up=True)
        guard.shut = None
        guard.changed.set()

    @property
    def _lasting(self) -> float:
        return _LASTING_S if self.alone else 0.0

    def _note_failure(self, permit: Permit, error: UpstreamError, place: Place) -> None:
        failing, answering = self._blamed(error, place, permit.kind)
        for guard, admission in permit.admissions.items():
            if guard is failing:
                self._note_breaker(guard, admission, error)
            elif guard in answering:
                self._note_breaker(guard, admission, None)
            else:
                guard.breaker.released(admission)
        if isinstance(error, CredentialsRefused):
            self._publish(f"refuses the credentials: {error}", up=True)
        else:
            self._publish(f"failing: {error}", up=False)

    def _blamed(self, error: UpstreamError, place: Place, kind: str) -> tuple[TrackedBreaker | None, tuple[TrackedBreaker, ...]]:
        """The breaker that an error counts for (None if it has been counted), and those of hosts that have answered."""
        own, asked = self.own, self.guard(kind)
        match place:
            case Place.REDIRECT_TARGET:
                return self.content, (own, asked)
            case Place.TOKEN_HOST:
                return None, (own,)
            case Place.REGISTRY if isinstance(error, UpstreamUnreachable):
                return own, ()
            case Place.REGISTRY:
                return asked, () if isinstance(error, UpstreamTimeout) else (own,)

    def _note_breaker(self, guard: TrackedBreaker, admission: Admission, error: UpstreamError | None) -> None:
        opened = guard.note(admission, error, self.clock())
        if guard is self.content:
            return
        if self.sharing is not None:
            self.sharing.noted(guard)
        if opened and self.opened is not None:
            self.opened(guard)

    def _note_answer(self, permit: Permit, *, with_content: bool) -> None:
        self.pull_quota.answered(permit.quota, self.clock())
        for guard, admission in permit.admissions.items():
            if with_content or guard is not self.content:
                self._note_breaker(guard, admission, None)
            else:
                guard.breaker.released(admission)
        self._publish("up", up=True)

    def _publish(self, state: str, *, up: bool) -> None:
        self.state = state
        self._metrics.upstream_asked(self.registry, self._upstream, up=up)
