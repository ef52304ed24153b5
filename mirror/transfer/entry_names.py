"""The names of images in a bundle, as the tools that write bundles spell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mirror.core.errors import InvalidInput
from mirror.core.names import ImageName, Tag
from mirror.transfer.layout import ATTACHED_NAME, CONTAINERD_NAME, REF_NAME


@dataclass(frozen=True, slots=True)
class EntryName:
    """What an entry of `index.json` says of its image's name.

    Attributes:
        image: the whole name; None if the entry has none.
        tag: a tag without a repository, which is no name.
        is_attached: it is a signature or another referrer.
    """

    image: ImageName | None = None
    tag: Tag | None = None
    is_attached: bool = False


NO_NAME: Final = EntryName()


def entry_name(annotations: Mapping[str, object]) -> EntryName:
    """Read the annotations of an entry. Raises InvalidInput for a name that is none.

    containerd and Docker write the whole name, and the tag alone beside it; skopeo and podman write what their user has typed.
    """
    attached, whole, ref = (annotations.get(key) for key in (ATTACHED_NAME, CONTAINERD_NAME, REF_NAME))
    if isinstance(attached, str):
        return EntryName(ImageName.parse(attached), is_attached=True)
    if isinstance(whole, str) and whole:
        return EntryName(ImageName.parse(whole))
    if not isinstance(ref, str) or not ref:
        return NO_NAME
    if any(sign in ref for sign in "/:@"):
        return EntryName(ImageName.parse(ref))
    try:
        return EntryName(tag=Tag.parse(ref))
    except InvalidInput:
        return NO_NAME


def named_as(name: ImageName, entry: EntryName) -> ImageName:
    """Return the name that an operator gives to an image; without a tag it takes the one in the bundle."""
    if name.tag is not None or name.digest is not None:
        return name
    tag = entry.tag or (None if entry.image is None else entry.image.tag)
    return ImageName(name.repository, tag, None)
