"""What can go wrong, one class each. Offsets count the bytes of the answer's own body."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from multidict import CIMultiDict

from .answer import Answer, plain
from .bodies import ENDLESS, Bytes, Flipped, Part, Repeated, zeros
from .connection import HangUpError
from .ledger import Seen


class Fault:
    """Does nothing; the base of all.

    `fits` says whether it can apply to an answer, so that it is not spent on another one.
    """

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return not answer.challenge

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return answer

    async def before(self) -> None:
        """Runs before the first byte of the answer."""

    async def allow(self, position: int) -> int:
        """The offset up to which the body may go on from `position`; may wait, or raise HangUpError."""
        return ENDLESS

    @property
    def rate(self) -> float | None:
        """Bytes a second, or None for no limit."""
        return None


class BodyFault(Fault):
    """Needs an answer with content: for a redirected blob that is the CDN's."""

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return seen.method == "GET" and answer.has_content


@dataclass
class PlacedFault(BodyFault):
    """Happens after so many bytes, and leaves alone bodies that are not longer."""

    after: int

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return answer.body.size > self.after and super().fits(seen, answer)


class HeadFault(Fault):
    """Needs the answer to a HEAD."""

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return seen.method == "HEAD" and answer.status == 200


@dataclass
class Status(Fault):
    """Another status instead of the answer. Without a body, a JSON error."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"

    def change(self, seen: Seen, answer: Answer) -> Answer:
        body = self.body
        if body is None:
            code = {401: "UNAUTHORIZED", 403: "DENIED", 404: "MANIFEST_UNKNOWN", 429: "TOOMANYREQUESTS"}
            error = {"code": code.get(self.status, "UNKNOWN"), "message": f"scripted {self.status}"}
            body = json.dumps({"errors": [error]}).encode()
        return plain(self.status, body, self.content_type, dict(self.headers))


class RateLimited(Status):
    """Docker Hub's pull limit (Docker documentation, Pull usage and limits)."""

    def __init__(self, retry_after: int | None = None) -> None:
        message = "You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit"
        body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": message}]}).encode()
        super().__init__(429, {} if retry_after is None else {"Retry-After": str(retry_after)}, body)


class AbuseLimited(Status):
    """Docker Hub's limit against abuse: plain text, on any request."""

    def __init__(self) -> None:
        super().__init__(429, {}, b"Too Many Requests (HAP429).\n", "text/plain")


class Cut(PlacedFault):
    """An orderly end (FIN) after so many bytes, short of the Content-Length."""

    async def allow(self, position: int) -> int:
        if position >= self.after:
            raise HangUpError
        return self.after


class Reset(PlacedFault):
    """A TCP reset after so many bytes have arrived."""

    async def allow(self, position: int) -> int:
        if position >= self.after:
            raise HangUpError(reset=True)
        return self.after


@dataclass
class Disconnect(Fault):
    """The connection ends before any answer."""

    reset: bool = False

    async def before(self) -> None:
        raise HangUpError(self.reset)


@dataclass
class Gate(BodyFault):
    """Holds the body exactly after `after` bytes: `reached` is set then. See `advance` and `release`."""

    after: int
    event: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return answer.body.size >= self.after and super().fits(seen, answer)

    async def allow(self, position: int) -> int:
        while position >= self.after and not self.event.is_set():
            self.waiting += 1
            self.reached.set()
            try:
                await self.event.wait()
            finally:
                self.waiting -= 1
        return ENDLESS if position >= self.after or self.event.is_set() else self.after

    def advance(self, to: int) -> None:
        """Let the body go on up to offset `to`; `reached` is set anew when it is there."""
        if to <= self.after:
            raise ValueError(f"the gate already stands at {self.after}")
        held, self.event, self.after = self.event, asyncio.Event(), to
        self.reached.clear()
        held.set()

    def release(self) -> None:
        """Let everything go on, now and later."""
        self.event.set()


class Stall(Gate):
    """No byte more after so many, the connection stays open; until released."""


@dataclass
class NoHeaders(Fault):
    """The request is taken and never answered, until released."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def before(self) -> None:
        self.reached.set()
        await self.event.wait()

    def release(self) -> None:
        self.event.set()


@dataclass
class Delay(Fault):
    """So many seconds before the answer."""

    seconds: float

    async def before(self) -> None:
        await asyncio.sleep(self.seconds)


@dataclass
class Slow(BodyFault):
    """A body at so many bytes a second."""

    bytes_per_second: float

    @property
    def rate(self) -> float | None:
        return self.bytes_per_second


@dataclass
class Corrupt(BodyFault):
    """One byte inverted; bodies that end before it are left alone."""

    at: int = 0

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return answer.body.size > self.at and super().fits(seen, answer)

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return replace(answer, body=Flipped(answer.body, self.at))


@dataclass
class WrongLength(BodyFault):
    """A Content-Length that is wrong by `delta`; the whole body follows, then the end of the connection."""

    delta: int

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return replace(answer, declared=answer.body.size + self.delta)


@dataclass
class Chunked(BodyFault):
    """No Content-Length but chunks, ended properly: after `after` bytes if given, or never."""

    endless: bool = False
    after: int | None = None

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return replace(answer, framing="chunked", body=_other_end(answer, self.endless, self.after))


@dataclass
class UntilClose(BodyFault):
    """No Content-Length: the body ends with the connection (RFC 9112 section 6.3).

    After `after` bytes if given.
    """

    after: int | None = None

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return replace(answer, framing="close", body=_other_end(answer, False, self.after))


@dataclass
class HugeBody(BodyFault):
    """Declares and sends `size` zero bytes."""

    size: int

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return replace(answer, body=zeros(self.size))


@dataclass
class Html(Fault):
    """200 with a page for people, as a captive portal or a proxy answers."""

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return plain(200, b"<!doctype html><title>Welcome</title>", "text/html; charset=utf-8")


def _other_end(answer: Answer, endless: bool, after: int | None) -> Bytes | Part | Repeated:
    size = answer.body.size if after is None else after
    if endless:
        return Repeated(answer.body.read(0, min(answer.body.size, 1 << 20)), ENDLESS)
    return Part(answer.body, 0, size)


def with_headers(answer: Answer, changes: Mapping[str, str | None]) -> Answer:
    headers: CIMultiDict[str] = answer.headers.copy()
    for name, value in changes.items():
        headers.popall(name, None)
        if value is not None:
            headers[name] = value
    return replace(answer, headers=headers)
