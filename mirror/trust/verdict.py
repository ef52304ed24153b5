"""The verdict about a manifest, and the signatures from which it follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """What is known of the signatures of a manifest; the label `result` of a metric."""

    SIGNED = "signed"
    """One of the rule's keys or identities has signed it."""

    UNSIGNED = "unsigned"
    """It has no signature."""

    WRONG = "wrong"
    """It has signatures, and none of them is by one of the rule's keys or identities."""

    UNAVAILABLE = "unavailable"
    """Its signatures could not be fetched. Never stored."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a manifest.

    Attributes:
        why: who signed it, or what is wrong, in words.
    """

    result: Result
    why: str

    @property
    def is_signed(self) -> bool:
        """Whether the manifest may be served."""
        return self.result is Result.SIGNED

    def __str__(self) -> str:
        return f"{self.result}: {self.why}"


@dataclass(frozen=True, slots=True)
class SimpleSignature:
    """A layer of a manifest under a tag `sha256-<hex>.sig` (sigstore/cosign, specs/SIGNATURE_SPEC.md).

    Attributes:
        payload: what is signed.
        signature: in base64.
        certificate: of an identity, in PEM; empty for a key.
        log_entry: the entry of the transparency log, as JSON; empty without one.
    """

    payload: bytes
    signature: str
    certificate: str = ""
    log_entry: str = ""


@dataclass(frozen=True, slots=True)
class BundleSignature:
    """A sigstore bundle that refers to a manifest (sigstore/protobuf-specs, sigstore_bundle.proto), as JSON."""

    raw: bytes
