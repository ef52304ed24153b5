"""How the fake behaves; everything may be changed at any time."""

import time
from dataclasses import dataclass, field
from typing import Literal

SERVICE = "registry.docker.io"


@dataclass(eq=False)
class Settings:
    """Rates in bytes a second, times in seconds.

    `users` maps names to passwords. The pull limit is off when `ratelimit_limit` is None. `redirect_head`
    redirects HEAD of a blob as well. `bandwidth` is shared by all bodies of blobs, `connection_bandwidth` is
    each connection's own; `latency` comes before every answer. With `opaque_links` the query of a link to the
    next page is taken back only exactly as it was given out.
    """

    auth: Literal["bearer", "none", "basic"] = "bearer"
    users: dict[str, str] = field(default_factory=dict)
    token_lifetime: int = 300
    url_lifetime: int = 300
    redirect_blobs: bool = True
    redirect_head: bool = False
    ratelimit_limit: int | None = 100_000
    ratelimit_remaining: int = 100_000
    ratelimit_window: int = 21_600
    retry_after: int | None = None
    referrers: bool = True
    filter_referrers: bool = True
    absolute_links: bool = False
    opaque_links: bool = False
    page_size: int = 1_000
    bandwidth: float | None = None
    connection_bandwidth: float | None = None
    latency: float = 0.0
    clock_offset: float = 0.0

    def now(self) -> float:
        """Seconds since the epoch on the fake's clock."""
        return time.time() + self.clock_offset

    def advance(self, seconds: float) -> None:
        """Move the fake's clock on, so that tokens and signed addresses expire."""
        self.clock_offset += seconds
