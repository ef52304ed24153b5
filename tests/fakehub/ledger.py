"""What the fake has been asked, and what it has sent."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from multidict import CIMultiDictProxy

Host = Literal["registry", "token", "cdn"]
Kind = Literal["manifest", "blob", "token", "tags", "referrers", "ping", "catalog", "upload", "other"]


@dataclass
class Seen:
    """One request and what became of it.

    `reference` is the tag or digest asked for, `digest` what the answer was about. `path` and `query` are
    undecoded. `status` is 0 until the answer begins.
    `finished` is false while the answer is under way and stays false if it was cut or the client left.
    """

    method: str
    host: Host
    path: str
    query: str
    headers: CIMultiDictProxy[str]
    kind: Kind
    repository: str | None = None
    reference: str | None = None
    digest: str | None = None
    status: int = 0
    body_bytes_sent: int = 0
    finished: bool = False

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    def fits(self, wanted: dict[str, Any]) -> bool:
        return all(value is None or getattr(self, name) == value for name, value in wanted.items())


class JobStore:
    """The requests in order of arrival; a blob that is redirected makes two, one per host."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.active = 0
        self.peak = 0
        self._news = asyncio.Event()

    def find(
        self,
        method: str | None = None,
        kind: Kind | None = None,
        host: Host | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
    ) -> list[Seen]:
        """The requests that agree with everything named."""
        wanted = {
            "method": method,
            "kind": kind,
            "host": host,
            "repository": repository,
            "reference": reference,
            "status": status,
        }
        return [seen for seen in self.requests if seen.fits(wanted)]

    def count(
        self,
        method: str | None = None,
        kind: Kind | None = None,
        host: Host | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
    ) -> int:
        return len(self.find(method, kind, host, repository, reference, status))

    def bytes_sent(self, digest: str | None = None) -> int:
        """Bytes of bodies written by the registry and the CDN, all or those about one digest."""
        return sum(seen.body_bytes_sent for seen in self.requests if seen.host != "token" and digest in (None, seen.digest))

    async def wait_for(self, at_least: int = 1, timeout: float = 10, **wanted: Any) -> list[Seen]:
        """Wait until so many requests that agree with `wanted` have been answered or begun to be answered."""
        async with asyncio.timeout(timeout):
            while len(found := [seen for seen in self.find(**wanted) if seen.status]) < at_least:
                self._news.clear()
                await self._news.wait()
        return found

    def reset_counters(self) -> None:
        """Forget the requests; those still under way are no longer counted."""
        self.requests.clear()
        self.peak = self.active

    def _note(self, seen: Seen) -> None:
        self.requests.append(seen)
        self.active += 1
        self.peak = max(self.peak, self.active)

    def _tell(self) -> None:
        self._news.set()
