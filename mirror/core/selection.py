"""The manifests of an index for some platforms (OCI image-spec, image-index.md)."""

from collections.abc import Iterable, Sequence

from mirror.core.manifest import Descriptor
from mirror.core.platform import Platform


def chosen(children: Sequence[Descriptor], platforms: Iterable[Platform]) -> tuple[Descriptor, ...]:
    """The entries for these platforms, in the order of the index.

    Each platform selects the first entry that matches it, as clients do. If no entry has a platform, all are selected: the index
    is no choice between platforms.
    """
    manifests = [child for child in children if child.is_manifest]
    if not any(child.platform for child in manifests):
        return tuple(manifests)
    first = (next((child for child in manifests if platform.matches(child.platform)), None) for platform in platforms)
    selected = {child.digest for child in first if child is not None}
    return tuple({child.digest: child for child in manifests if child.digest in selected}.values())
