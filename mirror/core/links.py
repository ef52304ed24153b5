"""Links to the next page of a list (RFC 8288; OCI distribution-spec, Listing tags)."""

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

_MAX_FIELDS: Final = 32
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


def format_link(path: str, params: Mapping[str, str]) -> str:
    """A Link header to the next page at `path`, which is written as in the request line."""
    query = urlencode(params, errors="replace")
    target = quote(path, safe=_PATH_SAFE, errors="replace") + (f"?{query}" if query else "")
    return f'<{target}>; rel="next"'
