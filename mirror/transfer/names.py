"""Which images an export means: names, and globs over what is held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidImageSelector, InvalidInput, InvalidRegistry
from mirror.core.names import LATEST, ImagePattern, Reference, Repository, Tag, is_glob
from mirror.core.platform import Platform
from mirror.core.signatures import subject_of
from mirror.errors import MirrorError, NotFound
from mirror.storage.images import is_complete
from mirror.storage.store import Store

MAX_IMAGES: Final = 10_000


@dataclass(frozen=True, slots=True)
class RequestedImage:
    """An image or a glob, as it was asked for.

    Attributes:
        platforms: those to export; empty for the held ones.
    """

    text: str
    platforms: tuple[Platform, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """One image to export."""

    repository: Repository
    reference: Reference
    platforms: tuple[Platform, ...] = ()

    @property
    def name(self) -> str:
        """The whole name, with its registry."""
        return f"{self.repository}{':' if isinstance(self.reference, Tag) else '@'}{self.reference}"


class NameResolver:
    """Turns what was asked for into images.

    Args:
        registries: the configured ones.
        may_pull: whether clients may pull a tag.
    """

    def __init__(
        self, store: Store, default_registry: str, registries: Iterable[str], may_pull: Callable[[Repository, Tag], bool]
    ) -> None:
        self._store = store
        self._default_registry = default_registry
        self._registries = sorted(registries)
        self._may_pull = may_pull

    def resolve(self, requested: Iterable[RequestedImage]) -> tuple[list[ExportTarget], dict[str, Exception]]:
        """Return the images, sorted by name, and what was asked for in vain with the reason. Blocks on the index.

        A glob stands for the tags that are held complete and may be pulled.
        """
        targets: dict[str, ExportTarget] = {}
        problems: dict[str, Exception] = {}
        for one in requested:
            try:
                for target in self._targets(one):
                    # An image that is asked for twice gets all the platforms that are named.
                    known = targets.get(target.name, target)
                    platforms = tuple(dict.fromkeys((*known.platforms, *target.platforms)))
                    targets[target.name] = replace(target, platforms=platforms)
            except (InvalidInput, MirrorError) as error:
                problems[one.text] = error
            if len(targets) > MAX_IMAGES:
                return [], {one.text: InvalidImageSelector(one.text, f"leads to more than {MAX_IMAGES} images")}
        return [targets[name] for name in sorted(targets)], problems

    def _targets(self, one: RequestedImage) -> list[ExportTarget]:
        pattern = ImagePattern.parse(one.text, self._default_registry)
        repository = pattern.only_repository()
        if pattern.digest is not None and is_glob(pattern.digest):
            raise InvalidImageSelector(one.text, "a digest cannot be a glob")
        if repository is None or (pattern.digest is None and pattern.tag is not None and is_glob(pattern.tag)):
            return self._matching(one, pattern)
        if repository.registry not in self._registries:
            raise InvalidRegistry(repository.registry, f"not mirrored here; there are {', '.join(self._registries)}")
        if pattern.digest is not None:
            return [ExportTarget(repository, Digest.parse(pattern.digest), one.platforms)]
        tag = LATEST if pattern.tag is None else Tag.parse(pattern.tag)
        return [ExportTarget(repository, tag, one.platforms)]

    def _matching(self, one: RequestedImage, pattern: ImagePattern) -> list[ExportTarget]:
        found = [
            ExportTarget(repository, tag, one.platforms)
            for repository, tag, record in self._store.index.tags.matching(pattern)
            if repository.registry in self._registries
            and subject_of(tag) is None
            and self._may_pull(repository, tag)
            and is_complete(self._store.files, record.digest)
        ]
        if not found:
            raise NotFound("no complete image is held whose name matches")
        return found
