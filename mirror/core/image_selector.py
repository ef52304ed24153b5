"""Selects the images that a mirror keeps: one, or the tags of a repository that match."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidImageSelector, InvalidTag
from mirror.core.names import DOCKER_HUB, LATEST, ImagePattern, Reference, Repository, Tag, is_glob
from mirror.core.platform import Platform
from mirror.core.versions import Version, VersionRange

# In a class a hyphen is a range of characters.
_CLASS: Final = re.compile(r"\[!?\]?[^\]]*\]")


@dataclass(frozen=True, slots=True)
class ImageSelector:
    """One entry of a list of images to keep. Make one with `parse`.

    Attributes:
        reference: the one tag or digest; None with a `pattern`.
        pattern: a glob over tags; None with a `reference`.
        versions: only tags whose version is in it.
        newest: only so many, those with the highest versions.
        platforms: those to keep of it; empty for the usual ones.
    """

    MAX_TAGS: ClassVar[int] = 1000

    repository: Repository
    reference: Reference | None
    pattern: str | None
    versions: VersionRange | None = None
    newest: int | None = None
    platforms: tuple[Platform, ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        default_registry: str = DOCKER_HUB,
        versions: VersionRange | None = None,
        newest: int | None = None,
        platforms: Iterable[Platform] = (),
    ) -> "ImageSelector":
        """Read `[registry/]repository[:tag or glob]` or `[registry/]repository@digest`, with Docker's short forms.

        Without a tag it is `latest`, or all tags if `versions` or `newest` choose among them.
        Raises InvalidImageSelector, InvalidName, InvalidRegistry, InvalidTag or InvalidDigest.
        """
        parts = ImagePattern.parse(text, default_registry)
        # The brackets of an IPv6 address are no glob.
        if is_glob(parts.path) or (is_glob(parts.registry) and not parts.registry.startswith("[")):
            raise InvalidImageSelector(text, "only the tag can be a glob: a registry cannot be asked for its repositories")
        chooses = versions is not None or newest is not None
        reference, pattern = _reference(parts, chooses=chooses)
        if chooses and pattern is None:
            raise InvalidImageSelector(text, "versions and newest choose among tags: leave the tag out, or make it a glob")
        if newest is not None and not 0 < newest <= cls.MAX_TAGS:
            raise InvalidImageSelector(text, f"newest has to be from 1 to {cls.MAX_TAGS}")
        repository = Repository.parse(parts.registry, parts.path)
        return cls(repository, reference, pattern, versions, newest, tuple(platforms))

    def select(self, tags: Iterable[str]) -> list[Tag]:
        """The selected tags of a repository, the highest versions first, then the others by name; at most MAX_TAGS.

        With `versions` or `newest` only plain versions count, unless the glob has a hyphen, as in `*-alpine`: so neither
        prereleases nor variants get in unasked. What is not a tag is left out. Without a `pattern` there is nothing to select.
        """
        pattern = self.pattern
        if pattern is None:
            return []
        matching = sorted({tag for tag in map(_tag, tags) if tag is not None and fnmatchcase(tag.value, pattern)}, key=str)
        versions = {tag: version for tag in matching if (version := Version.parse(tag.value)) is not None}
        chosen = sorted((tag for tag in versions if self._counts(versions[tag])), key=versions.__getitem__, reverse=True)
        if not self._chooses:
            chosen += [tag for tag in matching if tag not in versions]
        return chosen[: self.newest or self.MAX_TAGS]

    def may_mean(self, tag: Tag) -> bool:
        """Whether a tag may be selected, by its name alone: with `newest`, other tags may be newer."""
        return self.reference == tag if self.pattern is None else tag in self.select([tag.value])

    @property
    def _chooses(self) -> bool:
        return self.versions is not None or self.newest is not None

    def _counts(self, version: Version) -> bool:
        if not self._chooses:
            return True
        suffixed = "-" in _CLASS.sub("", self.pattern or "")
        return (version.is_plain or suffixed) and (self.versions is None or self.versions.contains(version))

    def __str__(self) -> str:
        if isinstance(self.reference, Digest):
            return f"{self.repository}@{self.reference}"
        return f"{self.repository}:{self.reference or self.pattern}"


def _reference(parts: ImagePattern, *, chooses: bool) -> tuple[Reference | None, str | None]:
    """The one reference, or else the glob over tags. A digest has priority over a tag."""
    if parts.digest is not None:
        return Digest.parse(parts.digest), None
    if parts.tag is None:
        return (None, "*") if chooses else (LATEST, None)
    return (None, parts.tag) if is_glob(parts.tag) else (Tag.parse(parts.tag), None)


def _tag(name: str) -> Tag | None:
    try:
        return Tag.parse(name)
    except InvalidTag:
        return None
