"""The fake Docker Hub: a registry, a token host and a CDN on three loopback addresses."""

import asyncio
import socket
import traceback
from collections.abc import Callable, Mapping
from email.utils import formatdate
from types import TracebackType
from typing import Self

from .access import Access
from .answer import Answer
from .blobs import Cdn
from .catalog import Catalog
from .connection import Connection, HangUpError, Request
from .faults import Fault, Gate
from .ledger import Host, JobStore, Seen
from .pace import Bucket, piece
from .registry import Registry, route
from .script import Entry, Rule, Script
from .settings import Settings
from .tokens import Tokens

ADDRESSES: dict[Host, str] = {"registry": "127.0.0.1", "cdn": "127.0.0.2", "token": "127.0.0.3"}


class FakeHub(Catalog, JobStore, Settings):
    """Runs on the event loop it is entered on; content, settings and faults may be changed at any time.

    Leaving it raises what went wrong inside, so that a defect of the fake is not taken for one of the tested.
    """

    def __init__(self, port: int = 0, addresses: Mapping[Host, str] = ADDRESSES) -> None:
        Settings.__init__(self)
        Catalog.__init__(self)
        JobStore.__init__(self)
        self.errors: list[str] = []
        self._addresses = addresses
        self.accepted: dict[Host, int] = dict.fromkeys(ADDRESSES, 0)
        self._script = Script()
        self._shared = Bucket()
        self._ports: dict[Host, int] = dict.fromkeys(ADDRESSES, 0) | {"registry": port}
        self._sockets: dict[Host, socket.socket] = {}
        self._servers: list[asyncio.Server] = []
        self._live: set[Connection] = set()
        self._tokens = Tokens(self, self)
        self._cdn = Cdn(self, self)
        self._registry = Registry(self, self, Access(self, self._tokens), self._cdn)
        self._answer: dict[Host, Callable[[Request, Seen], Answer]] = {
            "registry": self._registry.answer,
            "token": self._tokens.answer,
            "cdn": self._cdn.answer,
        }

    @property
    def url(self) -> str:
        return f"http://{self.registry_host}"

    @property
    def registry_host(self) -> str:
        return self._address("registry")

    @property
    def token_host(self) -> str:
        return self._address("token")

    @property
    def cdn_host(self) -> str:
        return self._address("cdn")

    def script(self, rule: Rule, *faults: Fault) -> Entry:
        """Let faults happen, all together, to the requests that match."""
        return self._script.add(rule, *faults)

    def gate(self, rule: Rule, after: int = 0) -> Gate:
        """Hold the body of the answer that matches exactly after so many bytes."""
        gate = Gate(after)
        self._script.add(rule, gate)
        return gate

    def clear_script(self) -> None:
        self._script.clear()

    def _address(self, host: Host) -> str:
        return f"{self._addresses[host]}:{self._ports[host]}"

    async def __aenter__(self) -> Self:
        for host in ADDRESSES:
            self._bind(host)
        self._registry.base = self.url
        self._cdn.base = f"http://{self.cdn_host}"
        self._tokens.realm = f"http://{self.token_host}/token"
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()
        for sock in self._sockets.values():
            sock.close()
        if self.errors and error is None:
            raise AssertionError("the fake hub failed:\n" + "\n".join(self.errors))

    async def start(self) -> None:
        """Listen, on the same ports as ever."""
        if self._servers:
            return
        loop = asyncio.get_running_loop()
        for host, sock in self._sockets.items():
            self._servers.append(await loop.create_server(self._factory(host), sock=sock, backlog=1024))

    async def stop(self) -> None:
        """Refuse connections and drop those there are; the ports stay ours."""
        if self._servers:
            for host in ADDRESSES:
                self._bind(host)
        for server in self._servers:
            server.close()
        tasks = [connection.task for connection in self._live]
        for connection in tuple(self._live):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports whose task was done before tell of their end in the next turn of the loop.
        await asyncio.sleep(0)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def _bind(self, host: Host) -> None:
        # Bound but not listening: connections are refused, and nobody else gets the port.
        # asyncio turns off Nagle's algorithm only where the protocol is named; with it, each answer would take 40 ms.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The next one is bound before this one is closed. Nobody else's is: a port that is given out is not shared yet.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, host in self._sockets)
        sock.bind((self._addresses[host], self._ports[host]))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._ports[host] = sock.getsockname()[1]
        self._sockets[host] = sock

    def _factory(self, host: Host) -> Callable[[], Connection]:
        def connect() -> Connection:
            self.accepted[host] += 1
            return Connection(lambda connection, request: self._serve(host, connection, request), self._live)

        return connect

    async def _serve(self, host: Host, connection: Connection, request: Request) -> bool:
        seen = self._read(host, request)
        self._note(seen)
        try:
            answer, faults = self._decide(request, seen)
            if self.latency:
                await asyncio.sleep(self.latency)
            for fault in faults:
                await fault.before()
            seen.status, seen.digest = answer.status, answer.digest or seen.digest
            self._tell()
            await self._send(connection, seen, answer, faults)
            seen.finished = True
            return answer.complete
        except HangUpError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it is told when the hub is left
            self.errors.append(traceback.format_exc())
            raise HangUpError from None
        finally:
            self.active -= 1
            self._tell()

    def _read(self, host: Host, request: Request) -> Seen:
        path, _, query = request.target.partition("?")
        seen = Seen(request.method, host, path, query, request.headers, "token")
        if host == "registry":
            seen.kind, names = route(path)
            seen.repository, seen.reference = names.get("repository"), names.get("reference")
            seen.digest = seen.reference if ":" in (seen.reference or "") else None
        elif host == "cdn":
            seen.kind = "blob"
            seen.repository, seen.digest = self._cdn.names(path, query)
            seen.reference = seen.digest
        return seen

    def _decide(self, request: Request, seen: Seen) -> tuple[Answer, list[Fault]]:
        planned = self._answer[seen.host](request, seen)
        planned.headers["Date"] = formatdate(self.now(), usegmt=True)
        faults = self._script.take(seen, planned)
        answer = planned
        for fault in faults:
            answer = fault.change(seen, answer)
        if answer.pull and answer.status < 400:
            self.ratelimit_remaining -= 1
        return answer, faults

    async def _send(self, connection: Connection, seen: Seen, answer: Answer, faults: list[Fault]) -> None:
        await connection.write(answer.head())
        if seen.method == "HEAD" or answer.status == 304:
            return
        position, size = 0, answer.body.size
        while True:
            rates = self._rates(seen, answer, faults)
            stop = min(size, position + piece(*rates))
            for fault in faults:
                stop = min(stop, await fault.allow(position))
            if position >= size:
                break
            await self._pace(connection, stop - position, rates)
            data = answer.body.read(position, stop)
            if answer.framing == "chunked":
                data = b"%x\r\n%b\r\n" % (len(data), data)
            seen.body_bytes_sent += stop - position
            position = stop
            await connection.write(data)
        if answer.framing == "chunked":
            await connection.write(b"0\r\n\r\n")

    def _rates(self, seen: Seen, answer: Answer, faults: list[Fault]) -> tuple[float | None, ...]:
        limited = seen.kind == "blob" and answer.has_content
        own = [rate for fault in faults if (rate := fault.rate)]
        if limited and self.connection_bandwidth:
            own.append(self.connection_bandwidth)
        return (self.bandwidth if limited else None, min(own, default=None))

    async def _pace(self, connection: Connection, size: int, rates: tuple[float | None, ...]) -> None:
        shared, own = rates
        await self._shared.take(size, shared)
        await connection.bucket.take(size, own)
