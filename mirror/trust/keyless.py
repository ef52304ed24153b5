"""Signatures of identities, verified by the library of sigstore. Imported only where a rule names an identity.

The library verifies bundles as they are. cosign's older form, an annotation on a layer, has the same parts, but a promise of the
log (SignedEntryTimestamp) in the place of a proof: two classes here leave out the proof, and nothing else.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import structlog
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import (
    Certificate,
    ExtensionNotFound,
    ObjectIdentifier,
    RFC822Name,
    SubjectAlternativeName,
    UniformResourceIdentifier,
    load_pem_x509_certificate,
)
from cryptography.x509.extensions import UnrecognizedExtension
from sigstore._utils import read_embedded
from sigstore.errors import VerificationError
from sigstore.models import Bundle, TransparencyLogEntry, TrustedRoot
from sigstore.verify import Verifier
from sigstore_models.bundle import v1 as bundle_v1
from sigstore_models.common import v1 as common_v1
from sigstore_models.rekor import v1 as rekor_v1
from sigstore_models.trustroot import v1 as trustroot_v1
from tuf.ngclient.updater import Updater

from mirror.trust.judge import WrongSignature
from mirror.trust.rules import Identity
from mirror.trust.verdict import SimpleSignature

log = structlog.get_logger(__name__)

_PRODUCTION: Final = "https://tuf-repo-cdn.sigstore.dev"
# sigstore/fulcio, docs/oid-info.md: the issuer as text, and as a DER string in newer certificates.
_ISSUER: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_DER: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
# sigstore renews its trust root a few times a year.
_REFRESH_INTERVAL_S: Final = 86400.0
_RETRY_INTERVAL_S: Final = 300.0
# The longest wait for a refresh; the root at hand is used then, and the new one when it has come.
_REFRESH_TIMEOUT_S: Final = 5.0


class InvalidTrustRoot(ValueError):
    """A file that is no trust root of sigstore."""


class Keyless:
    """Verifies signatures of identities by a trust root of sigstore. May be used in any thread.

    Args:
        root: a file; None for the library's own root.
        refresh: renew the library's own root from sigstore's servers, once a day; after a failure again in five minutes.

    Raises:
        InvalidTrustRoot: the file is none.
    """

    def __init__(self, root: Path | None, *, refresh: bool) -> None:
        self._verifier = Verifier(trusted_root=_embedded_root() if root is None else _root_in(root))
        self._may_refresh = refresh and root is None
        # On the monotonic clock.
        self._refresh_at = 0.0
        self._lock = threading.Lock()

    def simple_signer(self, signature: SimpleSignature, identities: Iterable[Identity]) -> str:
        """The identity that made a signature in cosign's older form, in words; raises WrongSignature."""
        policy = _AnyIdentity(identities)
        try:
            self._current().verify_artifact(signature.payload, _PromisedBundle.of(signature), policy)
        except Exception as error:
            raise WrongSignature(_reason(error)) from error
        return policy.matched

    def bundle_signer(self, raw: bytes, manifest: bytes, identities: Iterable[Identity]) -> str:
        """The identity that made the signature in a bundle, in words; raises WrongSignature.

        Args:
            manifest: the bytes that are signed if the bundle has no envelope.
        """
        policy = _AnyIdentity(identities)
        try:
            bundle = Bundle.from_json(raw)
            if bundle._dsse_envelope is None:
                self._current().verify_artifact(manifest, bundle, policy)
            else:
                self._current().verify_dsse(bundle, policy)
        except Exception as error:
            raise WrongSignature(_reason(error)) from error
        return policy.matched

    def _current(self) -> Verifier:
        with self._lock:
            now = time.monotonic()
            is_due = self._may_refresh and now >= self._refresh_at
            if is_due:
                self._refresh_at = now + _REFRESH_INTERVAL_S
        if is_due:
            refreshing = threading.Thread(target=self._refresh, name="refresh-trust-root", daemon=True)
            refreshing.start()
            refreshing.join(_REFRESH_TIMEOUT_S)
        return self._verifier

    def _refresh(self) -> None:
        try:
            self._verifier = Verifier(trusted_root=_refreshed_root(_PRODUCTION, read_embedded("root.json", _PRODUCTION)))
        except Exception as error:  # noqa: BLE001 - of network, disk and metadata: the root at hand is used
            self._refresh_at = time.monotonic() + _RETRY_INTERVAL_S
            log.warning("trust_root_not_refreshed", cause=str(error), consequence="the one at hand is used")


class _AnyIdentity:
    """Accepts the certificates of some identities (`VerificationPolicy` of the library).

    Attributes:
        matched: the identity of the certificate, in words.
    """

    def __init__(self, identities: Iterable[Identity]) -> None:
        self._identities = tuple(identities)
        self.matched = ""

    def verify(self, cert: Certificate) -> None:
        """Raise VerificationError unless a certificate is of one of the identities."""
        issuer, subjects = _issuer(cert), _subjects(cert)
        for subject in subjects:
            if any(identity.matches(issuer, subject) for identity in self._identities):
                self.matched = f"{subject} ({issuer})"
                return
        raise VerificationError(f"by {', '.join(subjects) or 'nobody'} ({issuer}), which is none of the rule's identities")


class _PromisedEntry(TransparencyLogEntry):
    """An entry of the log with the log's promise to include it, and no proof yet that it has."""

    def _validate(self) -> None:
        """Require nothing: `_verify` fails without a promise."""

    def _verify(self, keyring: Any) -> None:
        self._verify_set(keyring)


class _PromisedBundle(Bundle):
    """The parts of a signature in cosign's older form, in the shape of a bundle."""

    @classmethod
    def of(cls, signature: SimpleSignature) -> _PromisedBundle:
        """Read the annotations of a layer; raises if they are malformed."""
        if not signature.log_entry:
            raise VerificationError("it has no entry of a transparency log, so nothing says when it was made")
        entry = json.loads(signature.log_entry)
        payload = entry["Payload"]
        body = json.loads(base64.b64decode(payload["body"]))
        tlog = rekor_v1.TransparencyLogEntry(
            log_index=str(payload["logIndex"]),  # type: ignore[arg-type]
            log_id=common_v1.LogId(key_id=base64.b64encode(bytes.fromhex(payload["logID"]))),
            kind_version=rekor_v1.KindVersion(kind=body["kind"], version=body["apiVersion"]),
            integrated_time=str(payload["integratedTime"]),  # type: ignore[arg-type]
            inclusion_promise=rekor_v1.InclusionPromise(signed_entry_timestamp=entry["SignedEntryTimestamp"]),
            # The model requires one; `_PromisedEntry` looks at the promise instead.
            inclusion_proof=rekor_v1.InclusionProof(log_index="0", root_hash=b"", tree_size="1", hashes=[]),  # type: ignore[arg-type]
            canonicalized_body=payload["body"],
        )
        certificate = load_pem_x509_certificate(signature.certificate.encode())
        der = common_v1.X509Certificate(raw_bytes=base64.b64encode(certificate.public_bytes(Encoding.DER)))
        material = bundle_v1.VerificationMaterial(certificate=der, tlog_entries=[tlog])
        message = common_v1.MessageSignature(signature=signature.signature.encode())
        inner = bundle_v1.Bundle(
            media_type=Bundle.BundleType.BUNDLE_0_3.value, verification_material=material, message_signature=message
        )
        return cls(inner, certificate)

    def __init__(self, inner: bundle_v1.Bundle, certificate: Certificate) -> None:
        self._signing_certificate = certificate
        super().__init__(inner)

    def _verify(self) -> None:
        self._log_entry = _PromisedEntry(self._inner.verification_material.tlog_entries[0])


def _embedded_root() -> TrustedRoot:
    return TrustedRoot(trustroot_v1.TrustedRoot.from_json(read_embedded("trusted_root.json", _PRODUCTION)))


def _refreshed_root(url: str, bootstrap: bytes) -> TrustedRoot:
    """Fetch the trust root from a repository of TUF; raises what that library raises.

    The library of sigstore would keep its files in a home directory, which a service does not have.

    Args:
        bootstrap: the first root of the repository's metadata, which everything else is verified by.
    """
    with tempfile.TemporaryDirectory(prefix="registry-mirror-") as directory:
        updater = Updater(directory, url, directory, f"{url}/targets/", bootstrap=bootstrap)
        updater.refresh()
        target = updater.get_targetinfo("trusted_root.json")
        if target is None:
            raise InvalidTrustRoot(f"{url} has no trusted_root.json")
        return _root_in(Path(updater.download_target(target)))


def _root_in(path: Path) -> TrustedRoot:
    try:
        root = TrustedRoot.from_file(str(path))
        root.get_fulcio_certs()
        Verifier(trusted_root=root)
    except Exception as error:
        raise InvalidTrustRoot(f"is no trust root of sigstore: {_reason(error)}") from error
    return root


def check_trust_root(path: Path) -> None:
    """Raise InvalidTrustRoot unless a file is a trust root of sigstore."""
    _root_in(path)


def _issuer(cert: Certificate) -> str:
    for oid in (_ISSUER_DER, _ISSUER):
        try:
            value = cert.extensions.get_extension_for_oid(oid).value
        except ExtensionNotFound:
            continue
        if isinstance(value, UnrecognizedExtension):
            return asn1.decode_der(str, value.value) if oid == _ISSUER_DER else value.value.decode()
    raise VerificationError("its certificate names no issuer")


def _subjects(cert: Certificate) -> list[str]:
    names = cert.extensions.get_extension_for_class(SubjectAlternativeName).value
    return [*names.get_values_for_type(RFC822Name), *names.get_values_for_type(UniformResourceIdentifier)]


def _reason(error: Exception) -> str:
    # A mistake in a model is said in the lines after the first.
    lines = [line.strip() for line in str(error).splitlines()[:3]]
    return " ".join(filter(None, lines))[:300] or type(error).__name__
