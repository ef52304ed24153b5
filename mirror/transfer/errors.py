"""What is wrong with a bundle."""

from __future__ import annotations

from mirror.core.errors import InvalidInput, shortened
from mirror.errors import MirrorError


class InvalidBundle(InvalidInput):
    """A bundle that is refused as a whole.

    Args:
        reason: why.
        member: the name of the member that is wrong; None for the archive itself.
    """

    what = "bundle"

    def __init__(self, reason: str, member: str | None = None) -> None:
        super().__init__(member, reason)
        named = "" if member is None else f"member {shortened(member)}: "
        self.args = (f"invalid bundle: {named}{reason}",)


class ImportStopped(MirrorError):
    """The import has ended while a thread worked for it."""


class ImageRefused(MirrorError):
    """An image of a bundle that is not imported; the others may be. The message is the cause."""
