"""Files of public keys: what is accepted, and what is a mistake."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from mirror.trust.keys import InvalidKey, PublicKey
from tests.trust.signing import Key

KEY = Key.ecdsa()
RSA = Key.rsa()
PKCS1 = RSA.private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
MISTAKES = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "cut": (KEY.pem[:-30], "is cut off"),
    "damaged": (KEY.pem.replace(b"MFk", b"MFl"), "is damaged"),
    "private": (KEY.private_pem, "private key"),
    "private key of cosign": (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAA==\n-----END", "private key"),
    "certificate": (b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "certificate"),
    "text": (b"hello", "not in PEM"),
    "binary": (bytes(range(256)), "not in PEM"),
    "two keys": (KEY.pem + RSA.pem, "more than one key"),
    "huge": (KEY.pem + b"#" * 20_000, "larger than 16 KiB"),
    "P-521": (Key.ecdsa(ec.SECP521R1()).pem, "secp521r1"),
    "another curve": (Key.ecdsa(ec.SECP256K1()).pem, "secp256k1"),
    "short RSA": (Key.rsa(1024).pem, "1024 bits"),
    "X25519": (Key(x25519.X25519PrivateKey.generate()).pem, "X25519"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what):
    """A file that is not one usable public key is refused with the reason, and nothing of it is repeated."""
    pem, reason = MISTAKES[what]
    with pytest.raises(InvalidKey, match=reason) as caught:
        PublicKey.parse(pem, "key.pub")
    assert str(caught.value).startswith("invalid public key 'key.pub': ")


def test_rsa_in_its_own_form():
    """A key in PKCS #1 is the same as in SubjectPublicKeyInfo."""
    assert PublicKey.parse(PKCS1, "a").fingerprint == PublicKey.parse(RSA.pem, "b").fingerprint


@pytest.mark.parametrize("signature", [b"", b"\0", b"\xff" * 1000])
@pytest.mark.parametrize("key", [KEY, RSA, Key.ed25519()], ids=["ecdsa", "rsa", "ed25519"])
def test_garbage_as_signature(key, signature):
    """Bytes that are no signature at all verify nothing, and raise nothing."""
    public = PublicKey.parse(key.pem, "key.pub")
    assert not public.verifies(signature, b"message")
    assert public.verifies(key.sign(b"message"), b"message")
