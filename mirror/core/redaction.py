"""Removes secrets from text for logs and error responses."""

from __future__ import annotations

import re

# The path of a webhook is its credential, in every spelling and at every place of a text.
_WEBHOOK = re.compile(r"(webhooks(?:/|%2f|%252f)).*", re.IGNORECASE | re.DOTALL)
# User name and password of a URL (RFC 3986 section 3.2.1).
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*(?=@)")


def without_secret(text: str) -> str:
    """A target, or a message with one in it, without what follows `webhooks/`, and without credentials in URLs."""
    return _USERINFO.sub("…", _WEBHOOK.sub(r"\1…", text))
