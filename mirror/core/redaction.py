"""Removes secrets from text for logs and error responses."""

from __future__ import annotations

import re

# The path of a webhook is its credential, in every spelling and at every place of a text.
_WEBHOOK = re.compile(r"(webhooks(?:/|%2f|%252f)).*", re.IGNORECASE | re.DOTALL)


def without_secret(text: str) -> str:
    """A path, or a message with one in it, without what follows `webhooks/`."""
    return _WEBHOOK.sub(r"\1…", text)
