"""What may not be repeated, neither in a log nor to whoever sent it."""

from __future__ import annotations

import re

# A webhook's path is its credential, however it is written and wherever in a text it stands.
_WEBHOOK = re.compile(r"(webhooks(?:/|%2f|%252f)).*", re.IGNORECASE | re.DOTALL)


def without_secret(text: str) -> str:
    """A path, or a message with one in it, without what follows `webhooks/`."""
    return _WEBHOOK.sub(r"\1…", text)
