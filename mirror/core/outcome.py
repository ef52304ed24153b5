"""How a request was answered: one word, the same in the header, the metrics and the log."""

from enum import StrEnum


class Outcome(StrEnum):
    """The value of `X-Cache` and of the label `outcome`."""

    HIT = "HIT"
    """Everything came from the store, and upstream was not asked."""

    MISS = "MISS"
    """This request made the mirror fetch the content from upstream."""

    JOINED = "JOINED"
    """The content came from a fetch that another request had started."""

    REVALIDATED = "REVALIDATED"
    """The content came from the store, after upstream had confirmed that it is still right."""

    STALE = "STALE"
    """The content came from the store although upstream could not be asked whether it is still right."""

    BYPASS = "BYPASS"
    """The content came from upstream and was not stored."""
