"""Guards the calls to a bucket: bounds and counts them, and makes none while the bucket fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from prometheus_client import Counter

from mirror.core.breaker import Admission, Breaker
from mirror.errors import MirrorError, UpstreamError

T = TypeVar("T")

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_S = 60.0
# Other calls do not tell: a key that may not write or list may still read, and so it is with a bucket that is full.
_READS = ("get", "head")


class ObjectsUnavailable(UpstreamError):
    """The bucket does not answer, or refuses to."""

    reason = "objects"


class ObjectAbsent(UpstreamError):
    """The bucket has no such object, or not these bytes of it."""

    reason = "absent"


class CallFailed(MirrorError):
    """The client of the bucket has failed.

    Attributes:
        is_denied: the bucket refuses the credentials, or what is asked with them.
    """

    def __init__(self, cause: str, *, is_denied: bool = False) -> None:
        super().__init__(cause)
        self.is_denied = is_denied


@dataclass(frozen=True)
class Call:
    """What a call is about.

    Attributes:
        op: its name in the metric.
        timeout_s: its time limit.
        is_trial: it is made although the bucket has failed a moment ago.
    """

    op: str
    timeout_s: float
    is_trial: bool = False


class GuardedCalls:
    """Makes calls. `run` has to run beside: it finds out when a bucket that has failed is back.

    Args:
        bucket: its name.
        requests: counts requests by `op` and `status`.
    """

    def __init__(self, bucket: str, requests: Counter) -> None:
        self._bucket = bucket
        self._requests = requests
        self._breaker = Breaker(longest=_LONGEST_PAUSE_S)
        self._failed = asyncio.Event()
        self._cause: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the bucket is not asked; None if it is."""
        return None if self.is_up else self._cause

    @property
    def is_up(self) -> bool:
        """Whether the bucket answers, as far as is known."""
        return self._breaker.is_closed

    async def run(self, trial: Callable[[], Awaitable[None]]) -> None:
        """Make a trial call after a call that has failed, and from time to time while the bucket fails, until cancelled."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            was_up = self.is_up
            await asyncio.sleep(self._breaker.wait(time.monotonic()))
            with contextlib.suppress(UpstreamError):
                await trial()
            if not self.is_up:
                self._failed.set()
            elif not was_up:
                log.info("objects_up", bucket=self._bucket)

    async def make(self, call: Call, work: Callable[[], Awaitable[T | None]]) -> T:
        """Make a call. An object that exists already gives None.

        Args:
            work: raises ObjectAbsent or CallFailed.

        Raises:
            ObjectAbsent: see `work`.
            ObjectsUnavailable: the bucket fails, or has failed a moment ago.
        """
        admission = self._breaker.reserve() if call.is_trial else Admission.NORMAL
        if not call.is_trial and not self._breaker.is_closed:
            raise ObjectsUnavailable("the bucket has failed a moment ago")
        try:
            async with asyncio.timeout(call.timeout_s):
                result = await work()
        except ObjectAbsent:
            self._succeeded(call.op, "absent")
            raise
        except (CallFailed, TimeoutError) as error:
            raise self._failure(call.op, error, admission) from error
        except BaseException:
            self._breaker.released(admission)
            raise
        self._succeeded(call.op, "exists" if call.op == "put" and result is None else "ok")
        return result  # type: ignore[return-value]

    def broke_off(self, cause: str) -> None:
        """Note that a body has failed."""
        self._requests.labels("get", "cut").inc()
        self._note_failure(cause, Admission.NORMAL, grave=True)

    def _succeeded(self, op: str, status: str) -> None:
        self._requests.labels(op, status).inc()
        self._breaker.succeeded()

    def _failure(self, op: str, error: CallFailed | TimeoutError, admission: Admission) -> ObjectsUnavailable:
        if isinstance(error, CallFailed):
            status, cause = "denied" if error.is_denied else "error", str(error)
        else:
            status, cause = "timeout", "no answer within the time limit"
        self._requests.labels(op, status).inc()
        is_unreachable = "error sending request" in cause
        if op in _READS or is_unreachable:
            self._note_failure(cause, admission, grave=status != "error" or is_unreachable)
        else:
            self._failed.set()
        return ObjectsUnavailable(f"the bucket {self._bucket}: {cause}")

    def _note_failure(self, cause: str, admission: Admission, *, grave: bool) -> None:
        was_up, self._cause = self.is_up, cause
        if self._breaker.failed(time.monotonic(), admission, grave=grave):
            self._failed.set()
            if was_up:
                log.warning("objects_down", bucket=self._bucket, cause=cause, consequence="upstream is asked instead")
