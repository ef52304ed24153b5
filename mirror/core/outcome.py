"""The outcome of a request: one word, the same in the header, the metrics and the log."""

from enum import StrEnum


class Outcome(StrEnum):
    """The value of `X-Cache` and of the label `outcome`."""

    HIT = "HIT"
    """Everything came from the store, without a request to upstream."""

    MISS = "MISS"
    """This request made the mirror fetch the content from upstream."""

    JOINED = "JOINED"
    """The content came from a fetch that another request had started."""

    REVALIDATED = "REVALIDATED"
    """The content came from the store, after upstream had confirmed that it is current."""

    STALE = "STALE"
    """The content came from the store, although upstream could not confirm that it is current."""

    BYPASS = "BYPASS"
    """The content came from upstream and was not stored."""
