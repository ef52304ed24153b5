"""Judges a manifest by its signatures. May take milliseconds for each signature: call it in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import Repository
from mirror.trust.bundle import SigstoreBundle, decoded
from mirror.trust.claims import Claim, IsAttestation, parse_simple, parse_statement, pre_authentication_encoding
from mirror.trust.rules import TrustRule
from mirror.trust.verdict import BundleSignature, Result, SimpleSignature, Verdict

if TYPE_CHECKING:
    # Imported only where a rule names an identity; needs the extra `sigstore`.
    from mirror.trust.keyless import Keyless

Signature: TypeAlias = SimpleSignature | BundleSignature

# Reasons that a verdict repeats.
_MAX_REASONS = 3
# Characters of them.
_MAX_TEXT = 1000


class WrongSignature(Exception):
    """A signature that does not count, with the reason."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A manifest to be judged.

    Attributes:
        raw: its bytes.
    """

    repository: Repository
    digest: Digest
    raw: bytes


@dataclass(frozen=True, slots=True)
class Judge:
    """Applies one rule.

    Attributes:
        keyless: verifies the signatures of identities; None if the rule names none.
    """

    rule: TrustRule
    keyless: Keyless | None = None

    def judge(self, subject: Subject, signatures: Iterable[Signature]) -> Verdict:
        """The verdict about a manifest; the first signature that counts is enough."""
        reasons: list[str] = []
        attestations = 0
        for signature in signatures:
            try:
                return Verdict(Result.SIGNED, _plain(f"by {self._signer(subject, signature)}"))
            except IsAttestation:
                attestations += 1
            except (WrongSignature, InvalidInput) as error:
                reasons.append(str(error))
        if reasons:
            return Verdict(Result.WRONG, _summary(reasons))
        if attestations:
            return Verdict(Result.UNSIGNED, f"it has no signature, only attestations ({attestations})")
        return Verdict(Result.UNSIGNED, "it has no signature")

    def _signer(self, subject: Subject, signature: Signature) -> str:
        """Who signed the manifest, in words; raises WrongSignature or InvalidInput."""
        claim: Claim | None
        if isinstance(signature, SimpleSignature):
            signer = self._simple_signer(signature)
            claim = parse_simple(signature.payload)
        else:
            signer, claim = self._bundle_signer(subject, signature)
        mismatch = None if claim is None else claim.mismatch(subject.repository, subject.digest)
        if mismatch is not None:
            raise WrongSignature(f"the signature by {signer} does not count: {mismatch}")
        return signer

    def _simple_signer(self, signature: SimpleSignature) -> str:
        key = self._key(decoded(signature.signature), signature.payload)
        if key is not None:
            return key
        if not signature.certificate:
            raise WrongSignature("a signature by none of the rule's keys")
        return self._require_keyless().simple_signer(signature, self.rule.identities)

    def _bundle_signer(self, subject: Subject, signature: BundleSignature) -> tuple[str, Claim | None]:
        """Who signed, and what; the claim is None if the signature is over the manifest's own bytes."""
        bundle = SigstoreBundle.parse(signature.raw)
        # Before the signature: an attestation is none, whoever made it.
        claim = parse_statement(bundle.payload_type, bundle.payload) if bundle.is_envelope else None
        message = pre_authentication_encoding(bundle.payload_type, bundle.payload) if bundle.is_envelope else subject.raw
        key = self._key(bundle.signature, message)
        if key is not None:
            return key, claim
        if not bundle.has_certificate:
            raise WrongSignature("a signature by none of the rule's keys")
        return self._require_keyless().bundle_signer(signature.raw, subject.raw, self.rule.identities), claim

    def _key(self, signature: bytes, message: bytes) -> str | None:
        """The key of the rule that made a signature, in words; None if none did."""
        keys: Sequence[str] = [f"key {key.name}" for key in self.rule.keys if key.verifies(signature, message)]
        return keys[0] if keys else None

    def _require_keyless(self) -> Keyless:
        if self.keyless is None:
            raise WrongSignature("a signature by an identity, and the rule names only keys")
        return self.keyless


def _summary(reasons: list[str]) -> str:
    different = list(dict.fromkeys(reasons))
    more = len(different) - _MAX_REASONS
    return _plain("; ".join(different[:_MAX_REASONS])) + (f"; and {more} more" if more > 0 else "")


def _plain(text: str) -> str:
    """A text with words of strangers, as it may stand in a line of the log."""
    return "".join(character if character.isprintable() else "?" for character in text)[:_MAX_TEXT]


class Judges:
    """The judges of all registries; the first one whose rule matches a repository applies.

    Args:
        judges: by registry.
    """

    def __init__(self, judges: Mapping[str, Sequence[Judge]]) -> None:
        self._judges = judges

    def find(self, repository: Repository) -> Judge | None:
        """The judge of a repository, or None."""
        judges = self._judges.get(repository.registry, ())
        return next((judge for judge in judges if judge.rule.pattern.matches_path(repository.path)), None)
