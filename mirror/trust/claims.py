"""What a signature says: which manifest, of which repository. Pure parsers of what cosign signs.

Simple signing: containers/image, docs/containers-signature.5.md, and sigstore/cosign, specs/SIGNATURE_SPEC.md. Statements:
in-toto/attestation, spec/v1/statement.md. Envelopes: secure-systems-lab/dsse, envelope.md and protocol.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import ImageName, Repository

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
"""The media type of a layer that holds a payload of simple signing."""

SIGNATURE_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
"""The predicate of a statement that is a signature; a statement with another one is an attestation."""

STATEMENT_TYPE: Final = "application/vnd.in-toto+json"
"""The payload type of an envelope that holds a statement."""

_SIMPLE_TYPES: Final = frozenset({"cosign container image signature", SIGNATURE_PREDICATE})
_STATEMENT_PREFIX: Final = "https://in-toto.io/Statement/"


class InvalidClaim(InvalidInput):
    """Nothing that a signature of a manifest says."""

    what = "signed payload"


class IsAttestation(InvalidClaim):
    """A statement about a manifest that is no signature of it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What was signed.

    Attributes:
        digests: the manifests, usually one.
        repository: None if the format states none.
    """

    digests: frozenset[Digest]
    repository: Repository | None

    def mismatch(self, repository: Repository, digest: Digest) -> str | None:
        """Why this is no claim about a manifest of a repository; None if it is one."""
        if digest not in self.digests:
            return f"it is about {min(map(str, self.digests))}"
        if self.repository is not None and self.repository != repository:
            return f"it is about the repository {self.repository}"
        return None


def parse_simple(payload: bytes) -> Claim:
    """Read a payload of simple signing. Raises InvalidClaim."""
    critical = _object(_load(payload), "critical")
    if critical.get("type") not in _SIMPLE_TYPES:
        raise InvalidClaim(critical.get("type"), "its type is not that of cosign's signatures")
    digest = _digest(_object(critical, "image").get("docker-manifest-digest"))
    return Claim(frozenset({digest}), _repository(_object(critical, "identity").get("docker-reference")))


def parse_statement(payload_type: str, payload: bytes) -> Claim:
    """Read an in-toto statement. Raises IsAttestation, or InvalidClaim if it is no statement."""
    if payload_type != STATEMENT_TYPE:
        raise InvalidClaim(payload_type, f"its type is not {STATEMENT_TYPE}")
    body = _load(payload)
    if not str(body.get("_type")).startswith(_STATEMENT_PREFIX):
        raise InvalidClaim(body.get("_type"), "no in-toto statement")
    if body.get("predicateType") != SIGNATURE_PREDICATE:
        raise IsAttestation(body.get("predicateType"), "an attestation, which is no signature")
    subjects = body.get("subject")
    if not isinstance(subjects, list) or not subjects:
        raise InvalidClaim(subjects, "no subject")
    repositories = {_repository(name) for subject in subjects if (name := _member(subject, "name"))}
    if len(repositories) > 1:
        raise InvalidClaim(subjects, "subjects of several repositories")
    return Claim(frozenset(map(_subject_digest, subjects)), next(iter(repositories), None))


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that the signature of an envelope is over (DSSE, protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _load(payload: bytes) -> dict[str, Any]:
    try:
        body = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidClaim(payload, "not JSON") from error
    if not isinstance(body, dict):
        raise InvalidClaim(payload, "not a JSON object")
    return body


def _object(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    if not isinstance(value, dict):
        raise InvalidClaim(value, f"no object {key}")
    return value


def _member(body: object, key: str) -> object:
    return body.get(key) if isinstance(body, dict) else None


def _digest(text: object) -> Digest:
    try:
        return Digest.parse(str(text))
    except InvalidInput as error:
        raise InvalidClaim(text, "no digest of a manifest") from error


def _subject_digest(subject: object) -> Digest:
    digests = _member(subject, "digest")
    for algorithm in ("sha256", "sha512"):
        encoded = _member(digests, algorithm)
        if encoded is not None:
            return _digest(f"{algorithm}:{encoded}")
    raise InvalidClaim(digests, "a subject without a digest")


def _repository(reference: object) -> Repository:
    """The repository of an image name; `docker.io/x`, `index.docker.io/x` and `x` are one."""
    try:
        return ImageName.parse(str(reference)).repository
    except InvalidInput as error:
        raise InvalidClaim(reference, "names no repository") from error
