"""The HTTP client for upstreams, and the connections that it may use."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection
from yarl import URL

from mirror.errors import UpstreamBusy, UpstreamProtocolError
from mirror.upstream import connections
from mirror.upstream.receiver import Body, open_body
from mirror.upstream.redirects import PublicResolver, is_inside
from mirror.upstream.translation import translated

# Received of one body before it is read. Bodies of blobs are received by `receiver`.
_READ_AHEAD_BYTES = 16 << 10

# An idle connection is kept for so long: registries, their token hosts and CDNs close theirs after a minute or later.
_KEEPALIVE_S = 60.0

# A longer body costs more to read than a new connection.
_MAX_DRAINED_BYTES = 16 << 10


@dataclass(frozen=True)
class Limits:
    """Bounds of the traffic with upstreams; times in seconds.

    Attributes:
        connect: until a connection is established.
        headers: from the request to the end of the response's headers.
        hedge: until a request without a response is sent once more beside the first.
        stall: until a body without a byte has failed.
        queue: until a request without a free connection has failed.
        manifest_connections: bound of the connections for everything but blobs, so that blobs cannot starve manifests.
    """

    connect: float = 5.0
    headers: float = 10.0
    hedge: float = 2.0
    stall: float = 15.0
    queue: float = 20.0
    manifest_connections: int = 32

    @property
    def hedge_after(self) -> float:
        """`hedge`, but early enough for a response to the second request before the time limit of the first."""
        return min(self.hedge, (self.connect + self.headers) / 4)


@dataclass
class Endpoint:
    """How an upstream is reached.

    Attributes:
        url: base URL, without `/v2`.
        proxy: URL of a proxy, if there is one.
        is_public: whether it is on the Internet, by the address that was connected to.
    """

    url: URL
    tls: ssl.SSLContext | bool = True
    proxy: str | None = None
    is_public: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_public = not is_inside(self.url.host or "")

    def note_address(self, response: aiohttp.ClientResponse) -> None:
        """Learn from a response whether the upstream is on the Internet; a proxy's address does not show that."""
        if self.proxy is None and (address := peer(response)) is not None:
            self.is_public = not is_inside(address)


class _Response(aiohttp.ClientResponse):
    """Keeps the address that it came from: a short response gives its connection back before that can be read.

    Attributes:
        peer: the address, if it is known.
        stall: seconds without a byte after which the body has failed.
    """

    peer: str | None = None
    stall: float | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        transport: Any = connection.transport
        name = transport.get_extra_info("peername") if transport is not None else None
        self.peer = str(name[0]) if name else None
        if hasattr(transport, "max_size"):
            # asyncio receives 256 KiB at once, of which a body's beginning would wait here, for hundreds of responses.
            transport.max_size = _READ_AHEAD_BYTES
        return await super().start(connection)


class Http:
    """The client, with a bound for the connections for blobs and one for all others.

    Args:
        pool: the queue for the connections for blobs, which all processes share.
        resolver: makes a resolver; None for the system's.
    """

    def __init__(
        self,
        limits: Limits,
        user_agent: str,
        pool: connections.Connections,
        resolver: Callable[[], AbstractResolver] | None = None,
    ) -> None:
        self.limits = limits
        self._user_agent = user_agent
        self._resolver = resolver or aiohttp.DefaultResolver
        self._session: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None
        self._connections = pool
        self._withdraws: set[Callable[[], None]] = set()
        self._closed = False
        self._others = asyncio.Semaphore(limits.manifest_connections)

    async def start(self) -> None:
        """Open the sessions; needs a running event loop."""
        self._session = self._open(self._resolver())
        # A session of its own: neither its connections nor its cached addresses may come from the one that allows all.
        self._guarded = self._open(PublicResolver(self._resolver()))

    def _open(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=_KEEPALIVE_S, resolver=resolver),
            # Cookies of a CDN must not be sent with the next request.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Not sock_read: its timer keeps running on an idle connection, whose next request then fails at once. Reads have
            # bounds of their own.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect),
            response_class=_Response,
            auto_decompress=False,
            trust_env=False,
            requote_redirect_url=False,
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
        )

    def body(self, response: aiohttp.ClientResponse) -> Body:
        """The body of a response of this client, to be received in large steps."""
        return open_body(response, self._connections.intake, self.limits.stall)

    async def close(self) -> None:
        """Close all connections; readers of blobs get ConnectionWithdrawn."""
        self._closed = True
        for withdraw in list(self._withdraws):
            # The client does not wake a reader of a connection that it closes.
            withdraw()
        for session in (self._session, self._guarded):
            if session is not None:
                await session.close()

    @contextlib.asynccontextmanager
    async def slot(self, *, blob: bool) -> AsyncIterator[None]:
        """Wait for one of the limited connections.

        Raises:
            UpstreamBusy: none became free in time.
        """
        async with self._connections.lease(self.limits.queue) if blob else self._acquired(self._others):
            with self._withdrawable():
                if self._closed:
                    raise UpstreamBusy("the configuration with which this was begun has been replaced", retry_after=1)
                yield

    @contextlib.contextmanager
    def _withdrawable(self) -> Iterator[None]:
        """Withdraw the connections of the context on `close`."""
        withdraw = connections.withdraw.get()
        if withdraw is None:
            # Its use is bounded in time.
            yield
            return
        self._withdraws.add(withdraw)
        try:
            yield
        finally:
            self._withdraws.discard(withdraw)

    @contextlib.asynccontextmanager
    async def _acquired(self, pool: asyncio.Semaphore) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.limits.queue):
                await pool.acquire()
        except TimeoutError as error:
            raise UpstreamBusy(f"all connections to upstreams were busy for {self.limits.queue:g} s", retry_after=5) from error
        try:
            yield
        finally:
            pool.release()

    def _session_for(self, url: URL, *, guarded: bool) -> aiohttp.ClientSession:
        # The resolver does not see an address in the URL.
        if guarded and is_inside(url.host or ""):
            raise UpstreamProtocolError(f"{url.host} is an internal address, to which a public upstream does not lead")
        session = self._guarded if guarded else self._session
        assert session is not None
        return session

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        tls: ssl.SSLContext | bool = True,
        proxy: str | None = None,
        guarded: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request without following redirects; the response has its headers.

        Args:
            guarded: connect to public addresses only. A proxy connects by itself, and is trusted.

        Raises:
            UpstreamError: connection, time limit or protocol, also while the body is read inside the context.
        """
        session = self._session_for(url, guarded=guarded and proxy is None)
        with translated(url):
            async with asyncio.timeout(self.limits.connect + self.limits.headers):
                response = await session.request(
                    method,
                    url,
                    headers=headers,
                    allow_redirects=False,
                    ssl=tls,
                    proxy=proxy,
                    read_bufsize=_READ_AHEAD_BYTES,
                )
            assert isinstance(response, _Response)
            response.stall = self.limits.stall
            try:
                yield response
            finally:
                # After a body that was read to its end the connection is in the pool already; any other one is closed.
                response.close()


def peer(response: aiohttp.ClientResponse) -> str | None:
    """The address that a response of `Http` comes from."""
    return response.peer if isinstance(response, _Response) else None


async def read_piece(response: aiohttp.ClientResponse) -> bytes:
    """The bytes of a body that have arrived, at least one; empty at its end. Raises TimeoutError if it stalls."""
    async with asyncio.timeout(response.stall if isinstance(response, _Response) else None):
        return await response.content.readany()


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a whole small body.

    Raises:
        UpstreamProtocolError: it is longer than `limit` bytes.
    """
    announced = response.content_length
    if announced is not None and announced > limit:
        raise UpstreamProtocolError(f"{response.url.host} announces {announced} bytes where at most {limit} are allowed")
    body = bytearray()
    while piece := await read_piece(response):
        body += piece
        if len(body) > limit:
            raise UpstreamProtocolError(f"{response.url.host} sends more than {limit} bytes where that is the most")
    return bytes(body)


async def drain(response: aiohttp.ClientResponse) -> None:
    """End a response whose body does not matter; a short one is read, so that its connection can be used again."""
    length = response.content_length
    if length is not None and length <= _MAX_DRAINED_BYTES:
        while await read_piece(response):
            pass
    response.release()
