"""Name resolution that leaves out internal addresses."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.errors import UpstreamProtocolError
from mirror.upstream.redirects import is_inside


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only.

    No name that a public upstream redirects to leads to this host, its network, or the cloud's metadata service.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Addresses of a host; raises UpstreamProtocolError if all it has are internal."""
        found = await self._inner.resolve(host, port, family)
        public = [result for result in found if not is_inside(result["host"])]
        if found and not public:
            raise UpstreamProtocolError(f"{host} has an internal address, to which a public upstream does not lead")
        return public

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()
