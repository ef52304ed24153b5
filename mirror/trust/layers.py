"""The layers of a manifest of signatures, each with what has to be fetched of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput, InvalidManifest
from mirror.core.media import strip_parameters
from mirror.trust.bundle import MEDIA_TYPE_PREFIX
from mirror.trust.claims import SIMPLE_SIGNING

# sigstore/cosign, pkg/oci/static/options.go and specs/SIGNATURE_SPEC.md.
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
_LOG_ENTRY: Final = "dev.sigstore.cosign/bundle"

MAX_SIGNATURES: Final = 100
"""Signatures of a manifest that are looked at, the newest ones of those under its tag: cosign adds at the end."""

MAX_PAYLOAD_BYTES: Final = 1 << 20
"""A larger payload or bundle is no signature."""


@dataclass(frozen=True, slots=True)
class SignatureLayer:
    """A layer that holds a signature.

    Attributes:
        size: bytes, as the manifest states.
        is_bundle: it is a bundle; otherwise a payload of simple signing with annotations.
        signature: in base64.
        certificate: in PEM; empty without one.
        log_entry: as JSON; empty without one.
    """

    digest: Digest
    size: int
    is_bundle: bool
    signature: str = ""
    certificate: str = ""
    log_entry: str = ""


def signature_layers(raw: bytes) -> list[SignatureLayer]:
    """Return the signatures in a manifest, the newest first, at most MAX_SIGNATURES; malformed layers are left out.

    Raises:
        InvalidManifest: it is no manifest.
    """
    try:
        layers = json.loads(raw)["layers"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidManifest(raw, "a manifest of signatures without layers") from error
    if not isinstance(layers, list):
        raise InvalidManifest(raw, "a manifest of signatures without a list of layers")
    found = (_layer(entry) for entry in reversed(layers[-MAX_SIGNATURES:]))
    return [layer for layer in found if layer is not None]


def _layer(entry: Any) -> SignatureLayer | None:
    try:
        media_type, size, digest = strip_parameters(entry["mediaType"]), int(entry["size"]), Digest.parse(entry["digest"])
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput):
        return None
    if not 0 <= size <= MAX_PAYLOAD_BYTES:
        return None
    if media_type.startswith(MEDIA_TYPE_PREFIX):
        return SignatureLayer(digest, size, is_bundle=True)
    annotations = entry.get("annotations")
    if media_type != SIMPLE_SIGNING or not isinstance(annotations, dict) or _SIGNATURE not in annotations:
        return None
    texts = (annotations.get(key) or "" for key in (_SIGNATURE, _CERTIFICATE, _LOG_ENTRY))
    return SignatureLayer(digest, size, False, *map(str, texts))
