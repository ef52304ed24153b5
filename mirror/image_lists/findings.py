"""What the readers have found in one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.errors import InvalidInput
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImageName
from mirror.core.platform import Platform

_MAX_SHOWN = 120


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that a file names.

    Attributes:
        image: as people write it, `[registry/]repository[:tag|@digest]`.
        platform: the one that the file asks for; None if it leaves that open.
    """

    image: str
    platform: Platform | None = None


class Findings:
    """Collects what one file names.

    Attributes:
        name: of the file.
        images: each once, in the order of the file.
        mistakes: lines of the form `FILE:LINE: what`.
        left_out: lines of the same form, about what is no image to fetch.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.images: dict[ListedImage, None] = {}
        self.mistakes: list[str] = []
        self.left_out: list[str] = []

    def add(self, line: int, image: str, platform: str | None = None) -> None:
        """Add an image; a name or platform that is none is a mistake."""
        self._add(line, image, platform, ImageName.parse)

    def add_selector(self, line: int, text: str) -> None:
        """Add an image whose tag may be a glob."""
        self._add(line, text, None, ImageSelector.parse)

    def mistake(self, line: int, what: str) -> None:
        """Record a mistake; lines count from 1."""
        mistake = f"{self.name}:{line}: {what}"
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)

    def leave_out(self, line: int, what: str) -> None:
        """Record what is not fetched, with the reason."""
        self.left_out.append(f"{self.name}:{line}: {what}")

    def _add(self, line: int, image: str, platform: str | None, parse: Callable[[str], object]) -> None:
        if "{{" in image:
            self.mistake(line, f"{shown(image)} is a template: render it first")
            return
        try:
            parse(image)
            listed = ListedImage(image, None if platform is None else Platform.parse(platform))
        except InvalidInput as error:
            self.mistake(line, str(error))
        else:
            self.images.setdefault(listed)


def shown(text: str) -> str:
    """A text of the file for a message: on one line, and not too long."""
    plain = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return plain if len(plain) <= _MAX_SHOWN else f"{plain[:_MAX_SHOWN]}…"
