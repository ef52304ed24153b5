"""Translates the HTTP client's exceptions, which no other module handles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import aiohttp
from yarl import URL

from mirror.errors import (
    UpstreamConnectTimeout,
    UpstreamDisconnected,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)


@contextlib.contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn the client's exceptions into ours. Messages name the host only: paths may carry signatures."""
    host = url.authority
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise UpstreamConnectTimeout(f"cannot connect to {host} in time") from error
    except TimeoutError as error:
        raise UpstreamTimeout(f"{host} did not answer in time") from error
    except (
        aiohttp.ClientConnectorError,
        aiohttp.ClientProxyConnectionError,
        aiohttp.ServerFingerprintMismatch,
    ) as error:
        raise UpstreamUnreachable(f"cannot connect to {host}: {_short(error)}") from error
    except (
        aiohttp.ClientPayloadError,
        aiohttp.ServerDisconnectedError,
        aiohttp.ClientOSError,
        ConnectionError,
    ) as error:
        raise UpstreamDisconnected(f"{host} closed the connection: {_short(error)}") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise UpstreamProtocolError(f"{host} does not speak HTTP as it should: {type(error).__name__}") from error


def _short(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__
