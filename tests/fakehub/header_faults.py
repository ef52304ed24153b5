"""Faults of headers, ranges, redirects and challenges."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from multidict import CIMultiDict

from .answer import Answer, plain
from .bodies import Part
from .faults import BodyFault, Fault, HeadFault, with_headers
from .ledger import Seen


@dataclass
class Headers(Fault):
    """Headers set to another value, or removed when the value is None."""

    changes: Mapping[str, str | None]

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return with_headers(answer, self.changes)


@dataclass
class HugeHeaders(Fault):
    """One header of so many bytes."""

    size: int = 128 * 1024

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return with_headers(answer, {"X-Padding": "x" * self.size})


class HeadWithoutLength(HeadFault):
    """A HEAD answered without Content-Length."""

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return replace(answer, with_length=False)


class HeadWithoutDigest(HeadFault):
    """A HEAD answered without Docker-Content-Digest."""

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return with_headers(answer, {"Docker-Content-Digest": None})


class RangeFault(BodyFault):
    """Needs the answer to a Range request."""

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return answer.status == 206 and super().fits(seen, answer)


class IgnoreRange(RangeFault):
    """200 with everything to a Range request, which a server may do (RFC 9110 section 14.2)."""

    def change(self, seen: Seen, answer: Answer) -> Answer:
        assert isinstance(answer.body, Part)
        whole = with_headers(answer, {"Content-Range": None})
        return replace(whole, status=200, body=answer.body.whole)


@dataclass
class BadContentRange(RangeFault):
    """A Content-Range that is not what was asked for: shifted by one byte unless a value is given."""

    value: str | None = None

    def change(self, seen: Seen, answer: Answer) -> Answer:
        start, end, size = map(int, re.findall(r"\d+", answer.headers["Content-Range"]))
        return with_headers(answer, {"Content-Range": self.value or f"bytes {start + 1}-{end + 1}/{size}"})


@dataclass
class Redirect(Fault):
    """307 to somewhere else."""

    location: str

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return Answer(307, CIMultiDict({"Location": self.location}))


class RedirectLoop(Fault):
    """307 to the address just asked for."""

    def change(self, seen: Seen, answer: Answer) -> Answer:
        target = seen.path + ("?" + seen.query if seen.query else "")
        return Answer(307, CIMultiDict({"Location": f"http://{seen.headers['Host']}{target}"}))


EXPIRED = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'


class ExpiredUrl(Fault):
    """The CDN says that the signed address has expired: 403 with XML."""

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return seen.host == "cdn"

    def change(self, seen: Seen, answer: Answer) -> Answer:
        return plain(403, EXPIRED, "application/xml")


@dataclass
class ForeignRealm(Fault):
    """A challenge that names another token address."""

    url: str

    def fits(self, seen: Seen, answer: Answer) -> bool:
        return answer.challenge

    def change(self, seen: Seen, answer: Answer) -> Answer:
        challenge = answer.headers["WWW-Authenticate"]
        return with_headers(answer, {"WWW-Authenticate": re.sub(r'realm="[^"]*"', f'realm="{self.url}"', challenge)})
