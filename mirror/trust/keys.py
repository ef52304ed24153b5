"""Public keys in PEM, and the signatures that they verify. Imported only where a rule of `trust` names a key.

ECDSA over P-256 and P-384, RSA with PKCS #1 v1.5, Ed25519: what `cosign generate-key-pair` and its key stores make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from mirror.core.errors import InvalidInput

_MIN_RSA_BITS: Final = 2048
# A key of RSA with 16384 bits has 2.8 KB.
_MAX_PEM_BYTES: Final = 16 << 10
_BEGIN: Final = b"-----BEGIN "
# The hashes that are tried, by curve. cosign signs with SHA-256 whatever the curve is; other tools follow the curve.
_CURVES: Final[dict[str, tuple[hashes.HashAlgorithm, ...]]] = {
    "secp256r1": (hashes.SHA256(),),
    "secp384r1": (hashes.SHA384(), hashes.SHA256()),
}

_Verify: TypeAlias = Callable[[bytes, bytes], None]


class InvalidKey(InvalidInput):
    """Not a public key that signatures can be verified with. Names the file, and repeats nothing of it."""

    what = "public key"


class PublicKey:
    """A key that verifies signatures.

    Attributes:
        name: as people know it, such as the name of its file.
        fingerprint: the hexadecimal SHA-256 of the key as SubjectPublicKeyInfo (RFC 5280 section 4.1) in DER.
    """

    def __init__(self, name: str, fingerprint: str, attempts: tuple[_Verify, ...]) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._attempts = attempts

    @classmethod
    def parse(cls, pem: bytes, name: str) -> PublicKey:
        """Read one key in PEM. Raises InvalidKey."""
        mistake = _mistake(pem)
        if mistake is not None:
            raise InvalidKey(name, mistake)
        try:
            key = serialization.load_pem_public_key(pem)
            attempts = _attempts(key)
        except UnsupportedAlgorithm as error:
            raise InvalidKey(name, "it is of a kind that is not supported") from error
        except ValueError as error:
            raise InvalidKey(name, "it is damaged, or no public key in PEM") from error
        if isinstance(attempts, str):
            raise InvalidKey(name, attempts)
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(name, hashlib.sha256(der).hexdigest(), attempts)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the key has made a signature of a message."""
        return any(_succeeds(verify, signature, message) for verify in self._attempts)


def _mistake(pem: bytes) -> str | None:
    """What is wrong with a file at first sight, or None."""
    if not pem.strip():
        return "it is empty"
    if len(pem) > _MAX_PEM_BYTES:
        return f"it is larger than {_MAX_PEM_BYTES >> 10} KiB"
    if b"PRIVATE KEY-----" in pem:
        return "it is a private key; the mirror needs the public one, and no more"
    if b"-----BEGIN CERTIFICATE-----" in pem:
        return "it is a certificate, not a public key"
    if _BEGIN not in pem:
        return "it is not in PEM: there is no line `-----BEGIN PUBLIC KEY-----`"
    if b"-----END " not in pem:
        return "it is cut off: there is no line `-----END PUBLIC KEY-----`"
    return "there is more than one key in it; each needs a file of its own" if pem.count(_BEGIN) > 1 else None


def _attempts(key: object) -> tuple[_Verify, ...] | str:
    """The ways in which a key may have signed, or why it is not supported."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        algorithms = _CURVES.get(key.curve.name)
        if algorithms is None:
            return f"it is of the curve {key.curve.name}; P-256 and P-384 are supported"
        return tuple(_ecdsa(key, algorithm) for algorithm in algorithms)
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _MIN_RSA_BITS:
            return f"it is an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} are the least"
        return (_rsa(key),)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return (key.verify,)
    return f"it is of a kind that is not supported ({type(key).__name__}); ECDSA, RSA and Ed25519 are"


def _ecdsa(key: ec.EllipticCurvePublicKey, algorithm: hashes.HashAlgorithm) -> _Verify:
    return lambda signature, message: key.verify(signature, message, ec.ECDSA(algorithm))


def _rsa(key: rsa.RSAPublicKey) -> _Verify:
    return lambda signature, message: key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())


def _succeeds(verify: _Verify, signature: bytes, message: bytes) -> bool:
    try:
        verify(signature, message)
    except InvalidSignature:
        return False
    return True
