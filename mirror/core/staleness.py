"""The table of upstream's failures: whether a stale answer may be served, for how long, and how the failure is described."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

DAY: Final = 86400.0

SLOW: Final = "slow"
"""The reason of an answer that does not wait for a running check."""

DELETED: Final = "deleted"
"""The reason of an answer that is kept although upstream answers 404."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one reason allows.

    Attributes:
        served: whether a stale answer may be served.
        longest: limit of the seconds since the last check, beside `stale_if_error`; None for none.
        bounded: whether `stale_if_error` applies.
        said: the description for people, in the log and in the answer's Warning.
    """

    served: bool
    said: str
    longest: float | None = None
    bounded: bool = True


_OUTAGE: Final = "upstream cannot be asked"

TABLE: Final[Mapping[str, Verdict]] = MappingProxyType(
    {
        "connect": Verdict(True, f"{_OUTAGE}: no connection"),
        "timeout": Verdict(True, f"{_OUTAGE}: no answer in time"),
        SLOW: Verdict(True, "upstream takes long to answer, and is still being asked"),
        "server_error": Verdict(True, f"{_OUTAGE}: it answers 5xx"),
        "rate_limited": Verdict(True, f"{_OUTAGE}: it limits the rate of pulls"),
        "cut": Verdict(True, f"{_OUTAGE}: it closes connections"),
        "protocol": Verdict(True, f"{_OUTAGE}: its answers make no sense"),
        "digest_mismatch": Verdict(True, f"{_OUTAGE}: it delivers wrong bytes"),
        "redirect": Verdict(True, f"{_OUTAGE}: where it redirects to refuses"),
        "offline": Verdict(True, "this mirror is offline, and asks no upstream", bounded=False),
        "busy": Verdict(True, f"{_OUTAGE}: all connections are in use"),
        "abandoned": Verdict(True, f"{_OUTAGE}: the one who asked has given up"),
        "error": Verdict(True, _OUTAGE),
        # An account that has been closed must not keep its access for a month.
        "credentials": Verdict(True, "upstream refuses the mirror's credentials", longest=DAY),
        "denied": Verdict(False, "upstream does not grant it"),
        "not_found": Verdict(False, "upstream does not have it"),
        DELETED: Verdict(True, "upstream has deleted it, and this mirror keeps it", bounded=False),
    }
)


def said(reason: str) -> str:
    """The description of the reason why an answer is stale, followed by the word for it in metrics and logs."""
    return f"{TABLE[reason].said} ({reason})"


def may_serve(reason: str, age: float, stale_if_error: float) -> bool:
    """Whether what was last checked `age` seconds ago may be served, although upstream failed for a reason of the table.

    A negative age comes from a clock that was set back: the age is unknown, and a stale answer is better than none.
    """
    verdict = TABLE[reason]
    if not verdict.served:
        return False
    if verdict.longest is not None and age > verdict.longest:
        return False
    return not verdict.bounded or age <= stale_if_error
