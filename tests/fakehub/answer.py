"""What the fake is about to send."""

import json
from dataclasses import dataclass, field
from http.client import responses
from typing import Literal

from multidict import CIMultiDict

from .bodies import Body, Bytes

Framing = Literal["length", "chunked", "close"]


@dataclass
class Answer:
    """A status, headers and a body with the way its end is told.

    `declared` is a Content-Length other than the body's size. `challenge` marks the 401 that asks for a
    token, `pull` an answer that Docker Hub counts against the pull limit.
    """

    status: int
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: Body = field(default_factory=Bytes)
    framing: Framing = "length"
    declared: int | None = None
    with_length: bool = True
    digest: str | None = None
    challenge: bool = False
    pull: bool = False

    @property
    def has_content(self) -> bool:
        return self.status in (200, 206) and self.body.size > 0

    @property
    def complete(self) -> bool:
        """Whether the client can tell the end of this answer from the start of the next."""
        return self.framing != "close" and self.declared in (None, self.body.size)

    def head(self) -> bytes:
        headers = self.headers.copy()
        if self.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif self.framing == "length" and self.with_length and self.status != 304:
            headers["Content-Length"] = str(self.body.size if self.declared is None else self.declared)
        if not self.complete:
            headers["Connection"] = "close"
        phrase = responses.get(self.status, "Unknown")
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def plain(status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, CIMultiDict({"Content-Type": content_type} | (headers or {})), Bytes(body))


def as_json(status: int, value: object, headers: dict[str, str] | None = None) -> Answer:
    return plain(status, json.dumps(value).encode(), "application/json", headers)


def error(status: int, code: str, message: str, detail: object = None) -> Answer:
    """An error body (OCI distribution-spec, Error codes)."""
    return as_json(status, {"errors": [{"code": code, "message": message, "detail": detail}]})
