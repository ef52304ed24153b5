"""The link to Redis: bounded calls, and no calls while Redis does not answer. The only module that knows its client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import Histogram
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from mirror.aio import Signal
from mirror.core.retry import backoff
from mirror.errors import MirrorError
from mirror.small_files import read_secret

log = structlog.get_logger(__name__)

# So many failures in a row end the calls until a probe succeeds.
_MAX_FAILURES = 3
# Of one process. A call that finds none free waits within its own time limit.
_CONNECTIONS = 4
# A call connects, waits for a free connection, and is repeated once if the server had closed an idle one.
_MAX_TIMEOUTS = 3
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 30.0


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


@dataclass(frozen=True)
class RedisAddress:
    """How Redis is reached.

    Attributes:
        url: with scheme, host, port and database.
        timeout_s: of connecting, and of each answer.
    """

    url: str
    timeout_s: float
    password_file: Path | None = None
    ca_file: Path | None = None


class _PasswordFile(CredentialProvider):
    """Reads the password for each connection, so that a renewed one is used."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        password = (await read_secret(self._path)).decode()
        return (password,) if self._username is None else (self._username, password)


class Link:
    """Calls Redis, or raises LinkDown at once while Redis is known not to answer.

    Needs `run` to be running: it connects, and finds out when Redis is back.

    Attributes:
        is_up: Redis has answered last. False until the first answer.
    """

    def __init__(self, address: RedisAddress, seconds: Histogram) -> None:
        self.is_up = False
        self._address = address
        self._longest_s = _MAX_TIMEOUTS * address.timeout_s
        self._seconds = seconds
        self._failures = 0
        # Set once the first probe has ended: until then it is not known whether Redis answers.
        self._probed = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._wanted = asyncio.Event()
        self._tried = Signal()
        self._redis = Redis(connection_pool=_pool(address))
        self._waiting: Redis | None = None

    async def run(self) -> None:
        """Probe Redis while it is down, with growing pauses; until cancelled."""
        attempt, was_up = 0, False
        while True:
            await self._down.wait()
            try:
                async with _bounded(self._longest_s):
                    await self._redis.ping()
            except (RedisError, OSError, TimeoutError) as error:
                self._probed.set()
                if not was_up and not attempt:
                    _log_alone(error)
                self._tried.pulse()
                await self._pause(backoff(attempt, base=_FIRST_PAUSE_S, cap=_MAX_PAUSE_S))
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
            LinkDown: at the latest after three times the time limit, with the wait for the first connection after twice that; at
                once while Redis is down.
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
            async with _bounded(limit_s):
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
        waiting = self._waiting = self._waiting or Redis(connection_pool=_pool(self._address, 1, timeout_s))
        words = ("XREAD", "COUNT", 1, "BLOCK", round(timeout_s * 1000), "STREAMS", stream, after)
        try:
            async with _bounded(timeout_s + self._longest_s):
                await waiting.execute_command(*words)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            self._note_failure(error)
            raise LinkDown(_cause(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        self.is_up = False
        for redis in (self._redis, self._waiting):
            if redis is not None:
                await redis.aclose()
                await redis.connection_pool.disconnect()

    async def _evaluate(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._command("EVALSHA", script.digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._command("EVAL", script.text, len(keys), *keys, *args)

    async def _command(self, *words: str | bytes | int) -> Any:
        return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, ResponseError):
            # It answers: for example that it is full, and takes no writes.
            return
        self._failures += 1
        if self._failures >= _MAX_FAILURES and self.is_up:
            self.is_up = False
            self._down.set()
            _log_alone(error)


@contextlib.asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[None]:
    """Bound what the client of Redis does, and end it when the task is cancelled.

    The client waits by `asyncio.wait_for`, which in Python 3.11 drops a cancellation that comes in the moment in which what it
    waits for is done.
    """
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            yield
    finally:
        if task.cancelling() > cancellations:
            raise asyncio.CancelledError


def _pool(address: RedisAddress, connections: int = _CONNECTIONS, wait_s: float = 0.0) -> BlockingConnectionPool:
    """Connections, on which an answer takes up to `wait_s` seconds longer than Redis needs."""
    options: dict[str, Any] = {**parse_url(address.url)}
    username = options.pop("username", None)
    if address.password_file is not None:
        options.pop("password", None)
        options["credential_provider"] = _PasswordFile(address.password_file, username)
    elif username is not None:
        options["username"] = username
    if address.ca_file is not None:
        options["ssl_ca_certs"] = str(address.ca_file)
    timeout = address.timeout_s
    return BlockingConnectionPool(
        max_connections=connections,
        timeout=timeout,
        socket_timeout=timeout + wait_s,
        socket_connect_timeout=timeout,
        # Only for an idle connection that the server has closed: a time limit is not repeated.
        retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
        **options,
    )


def _log_alone(error: BaseException) -> None:
    log.warning("cluster_alone", cause=_cause(error), consequence="this node fetches for itself")


def _cause(error: BaseException) -> str:
    return f"Redis: {str(error)[:200] or type(error).__name__}"
