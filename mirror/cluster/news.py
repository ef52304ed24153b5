"""News of upstreams: a node tells that a breaker or a pull limit has changed, and the others look before their next request."""

from __future__ import annotations

import random

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link
from mirror.core.counts import Count


class News:
    """Counts the news of upstreams in memory that all processes of a node share, so that a look costs a call only after news.

    Args:
        count: of the news that each process has heard or told; see `Total.NEWS`.

    Attributes:
        me: the name of this node.
    """

    def __init__(self, link: Link, keys: Keys, me: str, count: Count) -> None:
        self.link = link
        self.keys = keys
        self.me = me
        self._count = count

    @property
    def number(self) -> int:
        """Another one than before after news."""
        return self._count.total

    def add(self) -> None:
        """Have all processes of this node look before their next request."""
        # Not one more: that may restore the sum from before a process died, whose cell is cleared. The cell has 32 bits.
        self._count.own = random.getrandbits(31)

    def event(self, registry: str, upstream: str) -> list[str]:
        """The words of the event for other nodes."""
        return ["kind", "upstream", "node", self.me, "scope", self.keys.scope(registry), "upstream", upstream]
