"""Sends clients to the bucket for large blobs, by URLs that are signed for a while."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.networks import Network, is_within, parse_address
from mirror.errors import UpstreamError
from mirror.objects.bucket import Bucket
from mirror.objects.facts import ObjectFacts
from mirror.objects.keys import blob_key


@dataclass(frozen=True)
class RedirectRules:
    """Which requests are redirected.

    Attributes:
        networks: of the clients that can reach the bucket.
        min_size: bytes of the smallest blob.
        url_ttl_s: how long a URL is good for.
    """

    networks: tuple[Network, ...]
    min_size: int
    url_ttl_s: float


class ObjectRedirects:
    """Decides about redirects, and makes their URLs."""

    def __init__(self, bucket: Bucket, facts: ObjectFacts, rules: RedirectRules) -> None:
        self._bucket = bucket
        self._facts = facts
        self._rules = rules

    def is_for(self, client: str) -> bool:
        """Whether a client at an address can reach the bucket."""
        return is_within(parse_address(client), self._rules.networks)

    async def promised(self, digest: Digest) -> int | None:
        """Return the size of a blob that is large enough, and that the bucket keeps for as long as a URL is good, or None."""
        size = await self._facts.promise(digest) if self._bucket.is_up else None
        return size if size is not None and size >= self._rules.min_size else None

    async def url(self, digest: Digest, promised: int) -> str | None:
        """Return a URL from which a client may GET a blob of a promised size; None if it is not to be redirected."""
        try:
            if await self._bucket.size(blob_key(digest)) == promised:
                return await self._bucket.signed_url(blob_key(digest), self._rules.url_ttl_s)
        except UpstreamError:
            return None
        # Somebody else has deleted it, or put another one in its place.
        await self._facts.withdraw([digest])
        return None
