"""What the core raises: one base for all input that breaks a grammar or a rule."""

from typing import ClassVar

_SHOWN = 100


def shortened(value: object) -> str:
    """`repr(value)` in at most 100 characters, safe for a log line or an error body."""
    part = value[: _SHOWN + 1] if isinstance(value, str | bytes) else value
    text = repr(part)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class InvalidInput(ValueError):
    """Input from outside that cannot be accepted; the message names the value, shortened."""

    what: ClassVar[str] = "input"

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(f"invalid {self.what} {shortened(value)}: {reason}")
        self.reason = reason


class InvalidUrl(InvalidInput):
    """Not a URL of the kind that is needed."""

    what = "URL"


class InvalidDigest(InvalidInput):
    """Not a digest this mirror can verify."""

    what = "digest"


class InvalidName(InvalidInput):
    """Not a repository name, or not an image name or pattern."""

    what = "name"


class InvalidRegistry(InvalidName):
    """Not a registry's host[:port]."""

    what = "registry"


class InvalidTag(InvalidInput):
    """Not a tag."""

    what = "tag"


class InvalidPlatform(InvalidInput):
    """Not os/architecture[/variant]."""

    what = "platform"


class InvalidManifest(InvalidInput):
    """A body that is no manifest or index, or contradicts itself."""

    what = "manifest"


class DigestMismatch(InvalidManifest):
    """Bytes that are not the ones their digest names."""


class InvalidRange(InvalidInput):
    """A range that cannot be understood or served."""

    what = "range"


class RangeNotSatisfiable(InvalidRange):
    """A well-formed range with no byte in it; the answer is 416 (RFC 9110 section 15.5.17)."""


class InvalidPage(InvalidInput):
    """Not a page of a list."""

    what = "page"


class InvalidQuantity(InvalidInput):
    """Not a duration or a number of bytes."""

    what = "quantity"


class InvalidVersionRange(InvalidInput):
    """Not a range of versions, or one that no version is in."""

    what = "range of versions"


class InvalidImageSelector(InvalidInput):
    """Not an image, or images, that a mirror could keep."""

    what = "image"
