"""Links to the next page of a list (RFC 8288; OCI distribution-spec, Listing tags)."""

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from mirror.core.errors import InvalidPage

PAGE: Final = "page"
"""The parameter of our own links that holds the whole query of upstream's link."""
SPECIFIED: Final = frozenset({"n", "last", "artifactType"})
"""The parameters of lists that the specification names."""

_MAX_FIELDS: Final = 32
# Encoded once more it has to fit into a request line.
_LONGEST_QUERY: Final = 2048
_QUERY: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})+", re.ASCII)
_QUERY_SAFE: Final = "%~!$&'()*+,;=:@/?"
_STRAY: Final = re.compile(r"%(?![0-9A-Fa-f]{2})", re.ASCII)
# What a path may contain as it is, `%` included: it comes as the client wrote it.
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~"
_LINK: Final = re.compile(r'<(?P<target>[^>]*)>(?P<parameters>(?:[^",]|"(?:[^"\\]|\\.)*")*)', re.DOTALL)
_PARAMETER: Final = re.compile(r';\s*(?P<name>[^\s=;,"]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s;,"]+))', re.DOTALL)


def parse_link_next(headers: Iterable[str]) -> str | None:
    """The target of the first link with `rel="next"` in these Link headers, as it was written."""
    for header in headers:
        for link in _LINK.finditer(header):
            if "next" in _relations(link["parameters"]):
                target: str = link["target"]
                return target.strip()
    return None


def _relations(parameters: str) -> list[str]:
    """The relation types of a link; only its first `rel` counts (RFC 8288 section 3.3)."""
    for parameter in _PARAMETER.finditer(parameters):
        if parameter["name"].lower() == "rel":
            relations: str = parameter["quoted"] or parameter["bare"] or ""
            return relations.lower().split()
    return []


def next_query(url: str) -> dict[str, str]:
    """The query of a link's target (`n`, `last`, …), decoded; empty if the URL makes no sense."""
    try:
        return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        return {}


def parse_page(text: str) -> str:
    """A query that upstream has given as that of the next page, as it comes back from a client.

    Raises:
        InvalidPage: it is no query (RFC 3986 section 3.4), or longer than any that is given to clients.
    """
    if len(text) > _LONGEST_QUERY:
        raise InvalidPage(text, f"longer than {_LONGEST_QUERY} characters")
    if _QUERY.fullmatch(text) is None:
        raise InvalidPage(text, "not the query of a link to a page")
    return text


def next_page(target: str) -> str:
    """The query of a link's target as upstream wrote it, what no query may contain encoded: what it means only upstream knows.

    Raises:
        InvalidPage: there is none, or it is too long.
    """
    try:
        query = urlsplit(target).query
    except ValueError as error:
        raise InvalidPage(target, "not a URL") from error
    return parse_page(_STRAY.sub("%25", quote(query, safe=_QUERY_SAFE, errors="replace")))


def page_params(query: str) -> dict[str, str]:
    """The parameters of our own link to the page that has this query upstream.

    Those that the specification knows stay as they are; any other query stays whole, in one parameter.
    """
    params = next_query(f"?{query}")
    # A parameter that stands there twice means what only upstream knows, too.
    return params if params.keys() <= SPECIFIED and len(params) == query.count("&") + 1 else {PAGE: query}


def format_link(path: str, params: Mapping[str, str]) -> str:
    """A Link header to the next page at `path`, which is written as in the request line."""
    query = urlencode(params, errors="replace")
    target = quote(path, safe=_PATH_SAFE, errors="replace") + (f"?{query}" if query else "")
    return f'<{target}>; rel="next"'
