"""The images that the tests pull: what each is for, and its content."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness.images import (
    ARCHITECTURES,
    DOCKER,
    HOST_ARCHITECTURE,
    OCI,
    Format,
    Image,
    Index,
    Layer,
    build_image,
    build_index,
    layer_of_files,
    layer_of_noise,
)

_LAYER_BYTES = 4 * 1024 * 1024
_LARGE_BYTES = 60 * 1024 * 1024


@dataclass(frozen=True)
class Samples:
    """One image of each kind that clients treat differently."""

    app: Index  # a Docker manifest list for two platforms
    oci: Index  # the same layers as an OCI index
    single: Image  # a Docker manifest without a list
    large: Image  # one layer of 60 MiB: several seconds over the throttled line


def build_samples() -> Samples:
    """Build them all from files of this machine."""
    layers = {
        architecture: [
            layer_of_files(_files("/etc", "*.conf", offset, _LAYER_BYTES)),
            layer_of_files(_files(sysconfig.get_path("stdlib"), "*.py", offset, 2 * _LAYER_BYTES)),
            layer_of_files(_files("/usr/bin", "*", offset, 2 * _LAYER_BYTES)),
            layer_of_noise(_LAYER_BYTES, seed=offset),
        ]
        for offset, architecture in enumerate(ARCHITECTURES)
    }
    return Samples(
        app=_index(DOCKER, layers),
        oci=_index(OCI, layers),
        single=build_image(DOCKER, HOST_ARCHITECTURE, layers[ARCHITECTURES[0]][:2]),
        large=build_image(DOCKER, HOST_ARCHITECTURE, [layer_of_noise(_LARGE_BYTES, seed=99)]),
    )


def _index(family: Format, layers: dict[str, list[Layer]]) -> Index:
    return build_index(family, [build_image(family, name, parts) for name, parts in layers.items()])


def _files(directory: str, pattern: str, offset: int, limit: int) -> list[Path]:
    """Every second readable file in name order, beginning with `offset`, up to `limit` bytes together."""
    candidates = sorted(path for path in Path(directory).glob(pattern) if path.is_file() and not path.is_symlink())
    chosen, total = [], 0
    for path in candidates[offset::2]:
        size = path.stat().st_size
        if total + size <= limit:
            chosen.append(path)
            total += size
    return chosen
