"""Gives the images of a bundle their names: those in the bundle, and the one that an operator gives."""

from __future__ import annotations

from mirror.core.manifest import Descriptor
from mirror.core.names import LATEST, ImageName
from mirror.transfer.documents import BundledImage, DockerImage
from mirror.transfer.entry_names import named_as
from mirror.transfer.errors import InvalidBundle


def image_names(images: list[BundledImage], given: ImageName | None) -> list[ImageName | str]:
    """Return the name of each image, or why it has none.

    Args:
        given: the name of the image that has none, or of the only image.

    Raises:
        InvalidBundle: it is not clear to which image a name is given.
    """
    names: list[ImageName | str] = [_own_name(image) for image in images]
    if given is not None:
        proper = {at for at, image in enumerate(images) if not image.name.is_attached}
        wanted = {at for at in proper if isinstance(names[at], str)} or proper
        if len({images[at].content for at in wanted}) != 1:
            raise InvalidBundle(f"it has {len(wanted)} images that could be {given}")
        for at, image in enumerate(images):
            if at in wanted:
                names[at] = named_as(given, image.name)
            elif proper == wanted:
                names[at] = _moved(names[at], given)
    return _unambiguous(images, names)


def _moved(name: ImageName | str, given: ImageName) -> ImageName | str:
    """Return the name of a signature or referrer in the repository that the image got."""
    return name if isinstance(name, str) else ImageName(given.repository, name.tag, name.digest)


def _own_name(image: BundledImage) -> ImageName | str:
    if image.problem is not None:
        return image.problem
    if image.name.image is None:
        return "it has no name in the bundle; --as NAME (?as=NAME) gives it one"
    name = image.name.image
    return name if name.tag or name.digest else ImageName(name.repository, LATEST, None)


def _unambiguous(images: list[BundledImage], names: list[ImageName | str]) -> list[ImageName | str]:
    """Refuse names that two different images have."""
    contents: dict[str, set[Descriptor | DockerImage]] = {}
    for image, name in zip(images, names, strict=True):
        if isinstance(name, ImageName):
            contents.setdefault(str(name), set()).add(image.content)
    doubtful = {name for name, found in contents.items() if len(found) > 1}
    return ["the bundle has two images of this name" if str(name) in doubtful else name for name in names]
