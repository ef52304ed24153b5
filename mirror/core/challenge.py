"""Challenges of upstream registries and what follows from them: scopes, and where credentials may go.

RFC 9110 section 11; distribution's token authentication specification.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

from mirror.core.errors import InvalidRegistry
from mirror.core.names import parse_registry
from mirror.core.registries import known_token_host

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SKIP: Final = re.compile(r"[\s,]*")
_SCHEME: Final = re.compile(rf"(?P<scheme>{_WORD})(?:[ \t]+|(?=,)|$)")
_TOKEN68: Final = re.compile(r"(?P<token68>[A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
# Some registries omit the quotes around a URL, so an unquoted value need not be a token.
_PARAMETER: Final = re.compile(rf'(?P<name>{_WORD})[ \t]*=[ \t]*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; `scheme` and the names of `params` are in lower case."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)
    token68: str | None = None


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate lines of an answer, in order; what makes no sense is skipped."""
    return [challenge for value in values for challenge in _challenges(value)]


def _challenges(text: str) -> Iterator[Challenge]:
    """Read `scheme name=value, name="value", scheme token68, …`; a comma ends a parameter or a challenge."""
    scheme: str | None = None
    params: dict[str, str] = {}
    token68: str | None = None
    position = _skip(text, 0)
    while position < len(text):
        if scheme is not None and (match := _PARAMETER.match(text, position)):
            params.setdefault(match["name"].lower(), _value(match))
            position = match.end()
        elif match := _SCHEME.match(text, position):
            if scheme is not None:
                yield Challenge(scheme, params, token68)
            scheme, params, position = match["scheme"].lower(), {}, match.end()
            credentials = _TOKEN68.match(text, position)
            token68 = credentials["token68"] if credentials else None
            position = credentials.end() if credentials else position
        else:
            comma = text.find(",", position)
            position = len(text) if comma < 0 else comma
        position = _skip(text, position)
    if scheme is not None:
        yield Challenge(scheme, params, token68)


def _skip(text: str, position: int) -> int:
    match = _SKIP.match(text, position)
    return match.end() if match else position


def _value(match: re.Match[str]) -> str:
    quoted: str | None = match["quoted"]
    return match["bare"] if quoted is None else _ESCAPED.sub(r"\1", quoted)


def pull_scope(path: str) -> str:
    """The scope of a token to pull from the repository at this path; empty without a path, for a token that proves an account."""
    return f"repository:{path}:pull" if path else ""


def realm_allowed(realm_url: str, upstream_url: str, token_hosts: Collection[str]) -> bool:
    """Whether credentials for this upstream may be sent to this realm.

    The realm must be on the upstream's own host, on the token host of a well-known registry, or on one of `token_hosts`
    (`host` or `host:port`), and be https unless the upstream itself is http. Otherwise an upstream could have credentials sent
    anywhere.
    """
    realm, upstream = _url(realm_url), _url(upstream_url)
    if realm is None or upstream is None:
        return False
    if realm.scheme != "https" and upstream.scheme != "http":
        return False
    host, own = realm.hostname or "", upstream.hostname or ""
    allowed = {own, known_token_host(own), *(entry.lower() for entry in token_hosts)}
    return host in allowed or realm.netloc.lower() in allowed


def _url(text: str) -> SplitResult | None:
    """An http or https URL with a plain host and nothing in it that parsers disagree about, else None."""
    # Parsers drop or keep blanks and control characters as they like.
    if " " in text or not text.isprintable():
        return None
    try:
        url = urlsplit(text)
        parse_registry(url.netloc)
    except (InvalidRegistry, ValueError):
        return None
    return url if url.scheme in ("http", "https") else None
