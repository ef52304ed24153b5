"""Judges what an operator has to mend: disk, certificates, accounts, clock. Each check is one line with both numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mirror.core.units import format_bytes, format_duration

_SOON_S: Final = 14 * 86400.0
# Tokens and certificates are valid for minutes at least.
_MAX_SKEW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked, a key of the configuration or a registry.
        text: for people.
    """

    name: str
    ok: bool
    text: str


def check_disk(total: int, free: int, max_size: int, min_free: int) -> Check:
    """Judge whether the file system of the store has the size that the configuration assumes. All are bytes."""
    if total <= min_free:
        text = f"the file system has {format_bytes(total)}, and min_free keeps {format_bytes(min_free)}: nothing can be stored"
        return Check("storage", ok=False, text=text)
    if max_size and total < max_size:
        text = f"the file system has {format_bytes(total)}, less than max_size, {format_bytes(max_size)}"
        return Check("storage", ok=False, text=text)
    if free < min_free:
        text = f"{format_bytes(free)} are free, less than min_free, {format_bytes(min_free)}: images are evicted to restore it"
        return Check("storage", ok=False, text=text)
    return Check("storage", ok=True, text=f"{format_bytes(free)} of {format_bytes(total)} are free")


def check_certificate(name: str, not_after: float | None, now: float) -> Check:
    """Judge how long a certificate is valid. Times are seconds since the epoch; None if the end cannot be read."""
    if not_after is None:
        return Check(name, ok=True, text="the end of its validity cannot be read")
    left = not_after - now
    if left <= 0:
        return Check(name, ok=False, text=f"expired {_days(-left)} ago: clients refuse it")
    return Check(name, ok=left > _SOON_S, text=f"expires in {_days(left)}")


def check_account(registry: str, username: str, problem: str | None, *, accepted: bool) -> Check:
    """Judge the account of a registry.

    Args:
        problem: why it cannot be used; None if nothing is known against it.
        accepted: whether an upstream is known to accept it.
    """
    text = f"{username} {'is accepted' if accepted else 'has not been refused'}" if problem is None else problem
    return Check(f"account.{registry}", ok=problem is None, text=text)


def check_clock(skews: Mapping[str, float]) -> Check:
    """Judge the clock by those of upstreams. It is right if one of them agrees.

    Args:
        skews: seconds by which this machine's clock is ahead, by upstream.
    """
    if not skews:
        return Check("clock", ok=True, text="no upstream has told its time yet")
    name, skew = min(skews.items(), key=lambda entry: abs(entry[1]))
    seconds, word = round(abs(skew)), "ahead of" if skew > 0 else "behind"
    if seconds > _MAX_SKEW_S:
        text = f"{format_duration(seconds)} {word} the one of {name}: tokens and certificates may fail"
        return Check("clock", ok=False, text=text)
    return Check("clock", ok=True, text=f"agrees with {name} to {seconds} s")


def check_reload(problem: str | None) -> Check:
    """Judge whether the configuration in use is the present file's.

    Args:
        problem: why the last reload was refused; None if it was not.
    """
    text = "is the one that was loaded last" if problem is None else f"the last reload was refused: {problem}"
    return Check("configuration", ok=problem is None, text=text)


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else format_duration(max(1, round(seconds)))
