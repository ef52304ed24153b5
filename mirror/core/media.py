"""Media types of manifests and what they refer to (OCI image-spec, media-types.md; Docker manifest v2)."""

from typing import Final

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"

# What `docker load` takes. Docker 20.10 fails on a layer in zstd, and then on the whole archive.
LOADABLE_CONFIG_TYPES: Final = frozenset(
    {"application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"}
)
LOADABLE_LAYER_TYPES: Final = frozenset(
    {
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    }
)

MANIFEST_TYPES: Final = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
INDEX_TYPES: Final = frozenset({DOCKER_LIST, OCI_INDEX})
SCHEMA1_TYPES: Final = frozenset({SCHEMA1, SCHEMA1_SIGNED})
ALL_MANIFEST_TYPES: Final = MANIFEST_TYPES | INDEX_TYPES | SCHEMA1_TYPES | {OCI_ARTIFACT}

# One fixed value, whatever the client sent: an Accept that lacks a type makes some registries convert
# the object, which changes its digest, or deny that it exists.
UPSTREAM_ACCEPT: Final = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"


def strip_parameters(content_type: str) -> str:
    """The media type alone, in lower case, without `; charset=…` and the like (RFC 9110 section 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()
