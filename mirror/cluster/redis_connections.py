"""Connections to Redis: where it is, how a node signs in, and how long a call may take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from mirror.small_files import read_secret

# Of one process. A call that finds none free waits within its own time limit.
_CONNECTIONS = 4


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


@dataclass(frozen=True)
class ClusterServer:
    """A server of Redis Cluster.

    Attributes:
        host: empty for the host of the address.
    """

    host: str
    port: int


class _PasswordFile(CredentialProvider):
    """Reads the password for each connection, so that a renewed one is used."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        try:
            password = (await read_secret(self._path)).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise RedisConnectionError(f"the password cannot be read: {self._path}: {error}") from error
        return (password,) if self._username is None else (self._username, password)


@contextlib.asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[None]:
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


def client(address: RedisAddress, server: ClusterServer | None, *, waits: bool = False) -> Redis:
    """Return a client of the address, or of another server of its Redis Cluster.

    Args:
        waits: for one call at a time that may take long. The caller bounds it: without a time limit of its own the client does
            not use `asyncio.wait_for`, so a cancellation ends the call at once; see `bounded`.
    """
    options: dict[str, Any] = {**parse_url(address.url)}
    if server is not None:
        if options.pop("path", None) is not None:
            del options["connection_class"]
        options |= {"host": server.host or options.get("host"), "port": server.port}
    username = options.pop("username", None)
    if address.password_file is not None:
        options.pop("password", None)
        options["credential_provider"] = _PasswordFile(address.password_file, username)
    elif username is not None:
        options["username"] = username
    if address.ca_file is not None:
        options["ssl_ca_certs"] = str(address.ca_file)
    timeout = address.timeout_s
    pool = BlockingConnectionPool(
        max_connections=1 if waits else _CONNECTIONS,
        timeout=timeout,
        socket_timeout=None if waits else timeout,
        socket_connect_timeout=timeout,
        # Only for an idle connection that the server has closed: a time limit is not repeated.
        retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
        **options,
    )
    return Redis(connection_pool=pool)


async def close(*clients: Redis | None) -> None:
    """Close clients and their connections."""
    for redis in clients:
        if redis is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await redis.aclose()
                await redis.connection_pool.disconnect()
