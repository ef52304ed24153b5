"""Responses from manifests."""

from __future__ import annotations

from typing import Final

from mirror.cache.answers import ManifestAnswer
from mirror.core.digest import Digest
from mirror.core.outcome import Outcome
from mirror.core.staleness import said
from mirror.core.tag_moves import Keep
from mirror.core.units import format_utc
from mirror.listener.responses import Rendered, head
from mirror.registry.query import Query

_MAX_HEADS: Final = 4096


def warning(reason: str | None) -> dict[str, str]:
    """The header that gives the reason of a stale answer (RFC 7234 section 5.5.1), if it is stale."""
    return {} if reason is None else {"Warning": f'110 - "{said(reason)}"'}


class ManifestResponses:
    """Renders responses. The heads of hits are rendered once."""

    def __init__(self) -> None:
        self._heads: dict[tuple[Digest, str, Keep | None], bytes] = {}

    def render(self, answer: ManifestAnswer, query: Query) -> Rendered:
        """The response to a GET or HEAD."""
        outcome = answer.outcome
        if query.is_satisfied_by(answer.digest):
            headers = {"ETag": f'"{answer.digest}"', "X-Cache": outcome, **_held_back(answer.held_back)}
            return Rendered(304, head(304, headers), b"", outcome, answer.digest)
        body = b"" if query.is_head else answer.raw or b""
        return Rendered(200, self._head(answer), body, outcome, answer.digest)

    def _head(self, answer: ManifestAnswer) -> bytes:
        if answer.outcome is not Outcome.HIT:
            return _rendered_head(answer)
        # Not the answer itself: as a key it would keep its bytes in memory.
        key = answer.digest, answer.media_type, answer.held_back
        rendered = self._heads.get(key)
        if rendered is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            rendered = self._heads[key] = _rendered_head(answer)
        return rendered


def _rendered_head(answer: ManifestAnswer) -> bytes:
    headers = {
        "Content-Type": answer.media_type,
        "Content-Length": str(answer.size),
        "Docker-Content-Digest": str(answer.digest),
        "ETag": f'"{answer.digest}"',
        "X-Cache": answer.outcome,
    }
    return head(200, {**headers, **warning(answer.reason), **_held_back(answer.held_back)})


def _held_back(kept: Keep | None) -> dict[str, str]:
    """The header that says what the tag names upstream, and until when that is held back."""
    if kept is None:
        return {}
    until = "" if kept.until is None else f"; until={format_utc(kept.until)}"
    return {"X-Registry-Mirror-Held-Back": f"{kept.digest}{until}"}
