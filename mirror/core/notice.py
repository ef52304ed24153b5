"""A notification as it is sent to a webhook."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification.

    Attributes:
        name: tells it from all others, also when it is sent again.
        kind: of the event, in one word.
        image: with its tag.
        body: what is sent, in JSON.
    """

    name: str
    kind: str
    image: str
    body: bytes
