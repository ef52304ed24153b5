"""The parts of a sigstore bundle that a key verifies (sigstore/protobuf-specs, sigstore_bundle.proto, in JSON)."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.errors import InvalidInput

MEDIA_TYPE_PREFIX: Final = "application/vnd.dev.sigstore.bundle"
"""How the media types of bundles of all versions begin."""


class InvalidSigstoreBundle(InvalidInput):
    """Not a sigstore bundle."""

    what = "sigstore bundle"


@dataclass(frozen=True, slots=True)
class SigstoreBundle:
    """What a bundle holds: an envelope, or the signature of the manifest's bytes themselves.

    Attributes:
        signature: of the encoded envelope, or of the manifest.
        payload_type: of the envelope; empty without one.
        payload: of the envelope; empty without one.
        has_certificate: an identity signed it, not a key.
    """

    signature: bytes
    payload_type: str
    payload: bytes
    has_certificate: bool

    @property
    def is_envelope(self) -> bool:
        """Whether it holds an envelope."""
        return bool(self.payload_type)

    @classmethod
    def parse(cls, raw: bytes) -> SigstoreBundle:
        """Read a bundle. Raises InvalidSigstoreBundle."""
        try:
            body = json.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            raise InvalidSigstoreBundle(raw, "not JSON") from error
        material = _object(body, "verificationMaterial")
        has_certificate = "certificate" in material or "x509CertificateChain" in material
        if "messageSignature" in body:
            return cls(decoded(_object(body, "messageSignature").get("signature")), "", b"", has_certificate)
        envelope = _object(body, "dsseEnvelope")
        signatures = envelope.get("signatures")
        if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
            raise InvalidSigstoreBundle(signatures, "its envelope does not have exactly one signature")
        payload_type = envelope.get("payloadType")
        if not isinstance(payload_type, str) or not payload_type:
            raise InvalidSigstoreBundle(payload_type, "its envelope has no type")
        return cls(decoded(signatures[0].get("sig")), payload_type, decoded(envelope.get("payload")), has_certificate)


def decoded(text: object) -> bytes:
    """Decode base64. Raises InvalidSigstoreBundle."""
    if not isinstance(text, str):
        raise InvalidSigstoreBundle(text, "no text in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSigstoreBundle(text, "not base64") from error


def _object(body: object, key: str) -> dict[str, Any]:
    value = body.get(key) if isinstance(body, dict) else None
    if not isinstance(value, dict):
        raise InvalidSigstoreBundle(value, f"no object {key}")
    return value
