"""Which mirrors may share facts about a registry: those that ask the same upstreams with the same account."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256


def scope_of(registry: str, upstreams: Iterable[str], username: str | None) -> str:
    """Name a registry as a mirror is configured for it: mirrors with other upstreams or accounts share nothing."""
    text = "\n".join((*upstreams, username or ""))
    return f"{registry}~{sha256(text.encode()).hexdigest()[:12]}"
