"""The link to Redis: bounded calls, and no calls while Redis does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

import structlog
from prometheus_client import Histogram
from redis.asyncio import Redis
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from mirror.aio import Signal, UseCount
from mirror.cluster.redis_connections import ClusterServer, RedisAddress, bounded, client, close
from mirror.core.retry import backoff
from mirror.errors import MirrorError
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

# A call connects, waits for a free connection, and is repeated once if the server had closed an idle one.
_MAX_TIMEOUTS = 3.0
# For a call after so many failures in a row. A pull makes one call after the other: together they must not cost it much while
# Redis has just stopped to answer. The failure of the last one ends the calls until a probe succeeds.
_TIMEOUTS_AFTER_FAILURES = (_MAX_TIMEOUTS, 1.0, 0.5)
_MAX_FAILURES = len(_TIMEOUTS_AFTER_FAILURES)
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 30.0
# Before version 7 of Redis the error of a script has these words only.
_NOT_WRITABLE_WORD, _FULL_WORD = "-READONLY", "-OOM"


class LinkDown(MirrorError):
    """Redis was not asked, or has not answered in time, or has refused the call."""


class LinkRefused(LinkDown):
    """Redis has answered, and refused the call: for example because it is full."""


@dataclass(frozen=True)
class Script:
    """A Lua script; Redis runs it as one step.

    Attributes:
        digest: SHA-1, by which EVALSHA names a script that Redis has seen.
    """

    text: str

    @property
    def digest(self) -> str:
        """The name of the script at Redis."""
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_PROBE = Script("redis.call('SET', KEYS[1], '', 'PX', 1000)")


class Link:
    """Calls Redis, or raises LinkDown at once while Redis is known not to answer.

    Needs `run` to be running: it connects, and finds out when Redis is back.

    Args:
        seconds: measures the calls.
        probe_key: a key that is written to find out whether Redis takes writes.

    Attributes:
        is_up: Redis has answered last. False until the first answer.
    """

    def __init__(self, address: RedisAddress, seconds: Histogram, probe_key: str) -> None:
        self.is_up = False
        self._address = address
        self._timeout_s = address.timeout_s
        self._longest_s = _MAX_TIMEOUTS * address.timeout_s
        self._seconds = seconds
        self._probe_key = probe_key
        self._log = ThrottledLog(log, burst=1, interval=60.0)
        self._failures = 0
        # Set once the first probe has ended: until then it is not known whether Redis answers.
        self._probed = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._wanted = asyncio.Event()
        self._tried = Signal()
        self._calls = UseCount()
        # The server of Redis Cluster that has the keys; None for that of the address.
        self._server: ClusterServer | None = None
        self._redis = client(address, None)
        self._waiting: Redis | None = None

    async def run(self) -> None:
        """Probe Redis while it is down, with growing pauses; until cancelled."""
        attempt, was_up = 0, False
        while True:
            await self._down.wait()
            try:
                async with bounded(self._longest_s):
                    await self._probe()
            except (RedisError, OSError, TimeoutError) as error:
                self._probed.set()
                if not was_up and not attempt:
                    _log_alone(error)
                self._tried.pulse()
                await self._pause(backoff(attempt, base=_FIRST_PAUSE_S, cap=_MAX_PAUSE_S))
                # The name may lead to another server by then, as after a failover.
                await self._connect(None)
                attempt += 1
            else:
                self.is_up, was_up, attempt, self._failures = True, True, 0, 0
                self._down.clear()
                self._probed.set()
                log.info("cluster_joined")
                self._tried.pulse()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next probe, unless somebody wants it now."""
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

    async def probe(self) -> None:
        """Find out whether Redis is back, if it is down; at most three times the time limit."""
        if not self.is_up:
            self._wanted.set()
            await self._tried.wait(self._longest_s)

    async def call(self, script: Script, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Run a script at Redis.

        Raises:
            LinkDown: at the latest after three times the time limit, with the wait for the first connection after twice that;
                sooner after a failure; at once while Redis is down.
        """
        await self._first_probe()
        return await self._called(script, keys, args, self._longest_s)

    async def insist(self, script: Script, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Run a script at Redis like `call`, and again if no answer comes, until the link has ended; in the time of one call."""
        await self._first_probe()
        end = time.monotonic() + self._longest_s
        for _ in range(_MAX_FAILURES - 1):
            try:
                return await self._called(script, keys, args, end - time.monotonic())
            except LinkRefused:
                raise
            except LinkDown:
                if not self.is_up or time.monotonic() >= end:
                    raise
        return await self._called(script, keys, args, end - time.monotonic())

    async def _first_probe(self) -> None:
        """Wait until it is known whether Redis answers: a node that has just started would fetch what the others have."""
        if not self._probed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._longest_s):
                    await self._probed.wait()

    async def _called(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], limit_s: float) -> Any:
        if not self.is_up:
            raise LinkDown("Redis does not answer, and is not asked for now")
        began = time.monotonic()
        try:
            with self._calls.hold():
                async with bounded(min(limit_s, self._limit_s())):
                    found = await self._evaluate(script, keys, args)
        except (RedisError, OSError, TimeoutError) as error:
            self._note_failure(error)
            raise (LinkRefused if isinstance(error, ResponseError) else LinkDown)(_cause(error)) from error
        finally:
            self._seconds.observe(time.monotonic() - began)
        self._failures = 0
        return found

    async def wait_for_entry(self, stream: str, after: str, timeout_s: float) -> None:
        """Return when a stream has an entry after another one, or after `timeout_s` seconds; over a connection of its own.

        Raises:
            LinkDown: like `call`.
        """
        if not self.is_up:
            raise LinkDown("Redis does not answer, and is not asked for now")
        waiting = self._waiting = self._waiting or client(self._address, self._server, waits=True)
        words = ("XREAD", "COUNT", 1, "BLOCK", round(timeout_s * 1000), "STREAMS", stream, after)
        try:
            async with bounded(timeout_s + self._longest_s):
                await waiting.execute_command(*words)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            self._note_failure(error)
            raise LinkDown(_cause(error)) from error

    async def close(self) -> None:
        """Close the connections, after the calls under way: the client connects anew for a call whose connection is closed."""
        self.is_up = False
        await self._calls.unused()
        await close(self._redis, self._waiting)

    async def _probe(self) -> None:
        """Find out whether Redis can be written; a full one is up as well. Raises RedisError, OSError."""
        try:
            await self._evaluate(_PROBE, [self._probe_key], ())
        except ResponseError as error:
            if not _is_full(error):
                raise

    async def _connect(self, server: ClusterServer | None) -> None:
        """Use a server of Redis Cluster from now on, or that of the address."""
        used = self._redis, self._waiting
        self._server, self._redis, self._waiting = server, client(self._address, server), None
        await close(*used)

    async def _evaluate(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._evaluate_here(script, keys, args)
        except MovedError as error:
            # All keys of a cluster are at one server.
            server = ClusterServer(str(error.host), int(error.port))
            if server != self._server:
                await self._connect(server)
            return await self._evaluate_here(script, keys, args)

    async def _evaluate_here(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._command("EVALSHA", script.digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._command("EVAL", script.text, len(keys), *keys, *args)

    async def _command(self, *words: str | bytes | int) -> Any:
        return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def _limit_s(self) -> float:
        # Calls under way may fail after the one that has ended the link.
        return _TIMEOUTS_AFTER_FAILURES[min(self._failures, _MAX_FAILURES - 1)] * self._timeout_s

    def _note_failure(self, error: BaseException) -> None:
        is_refusal = isinstance(error, ResponseError)
        if is_refusal and not _is_not_writable(error):
            # It answers: for example that it is full, and takes no writes.
            consequence = "this node does by itself what that call is for"
            self._log.log("warning", "redis_refused", cause=_cause(error), consequence=consequence)
            return
        self._failures += 1
        if self.is_up and (is_refusal or self._failures >= _MAX_FAILURES):
            self.is_up = False
            self._down.set()
            _log_alone(error)


def _is_not_writable(error: BaseException) -> bool:
    """Whether a server says that it takes no writes: a replica, as after a failover, or one of a broken Redis Cluster."""
    return isinstance(error, (ReadOnlyError, ClusterDownError)) or _NOT_WRITABLE_WORD in str(error)


def _is_full(error: ResponseError) -> bool:
    return isinstance(error, OutOfMemoryError) or _FULL_WORD in str(error)


def _log_alone(error: BaseException) -> None:
    log.warning("cluster_alone", cause=_cause(error), consequence="this node fetches for itself")


def _cause(error: BaseException) -> str:
    return f"Redis: {str(error)[:200] or type(error).__name__}"
