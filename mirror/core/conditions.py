"""Conditional requests: whether the client already has the content (RFC 9110 section 13.1.2)."""

import re
from typing import Final

from mirror.core.digest import Digest

_MEMBER: Final = re.compile(r'(?:^|,)\s*(?:(?:W/)?"(?P<quoted>[^"]*)"|(?P<bare>[^\s,"]+))\s*(?=,|$)')


def etag_matches(header: str | None, digest: Digest) -> bool:
    """Whether an If-None-Match header names this digest, so that the answer is 304.

    The comparison is weak, the header may be a list or `*`; an unquoted digest counts, as elsewhere.
    """
    if header is None:
        return False
    if header.strip() == "*":
        return True
    tag = str(digest)
    return any(tag in (match["quoted"], match["bare"]) for match in _MEMBER.finditer(header))
