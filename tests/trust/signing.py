"""Makes signatures as cosign does: keys, both forms of storing them, and a sigstore of the test's own for identities.

Formats: sigstore/cosign, specs/SIGNATURE_SPEC.md and specs/BUNDLE_SPEC.md; sigstore/protobuf-specs.
"""

import base64
import json
from hashlib import sha256

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from mirror.trust.claims import SIGNATURE_PREDICATE, STATEMENT_TYPE, pre_authentication_encoding
from tests.fakehub import OCI_MANIFEST

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"


def b64(data):
    return base64.b64encode(data).decode()


class Key:
    """A private key and how it signs."""

    def __init__(self, private, algorithm=None):
        self.private = private
        self._algorithm = algorithm

    @classmethod
    def ecdsa(cls, curve=None, algorithm=None):
        return cls(ec.generate_private_key(curve or ec.SECP256R1()), algorithm or hashes.SHA256())

    @classmethod
    def rsa(cls, bits=2048):
        return cls(rsa.generate_private_key(65537, bits), hashes.SHA256())

    @classmethod
    def ed25519(cls):
        return cls(ed25519.Ed25519PrivateKey.generate())

    def sign(self, message):
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(message)
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), self._algorithm)
        return self.private.sign(message, ec.ECDSA(self._algorithm))

    @property
    def pem(self):
        public, pem = self.private.public_key(), serialization.Encoding.PEM
        return public.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def private_pem(self):
        kind = serialization.PrivateFormat.PKCS8
        return self.private.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())

    def write(self, folder, name="key.pub"):
        path = folder / name
        path.write_bytes(self.pem)
        return str(path)


def payload(digest, repository="docker.io/library/app", kind="cosign container image signature"):
    """A payload of simple signing."""
    identity, image = {"docker-reference": repository}, {"docker-manifest-digest": str(digest)}
    return json.dumps({"critical": {"identity": identity, "image": image, "type": kind}, "optional": None}).encode()


def statement(digest, predicate=SIGNATURE_PREDICATE, name=None):
    """An in-toto statement about a manifest."""
    algorithm, _, encoded = str(digest).partition(":")
    subject = {"digest": {algorithm: encoded}, **({} if name is None else {"name": name})}
    body = {"_type": "https://in-toto.io/Statement/v1", "subject": [subject], "predicateType": predicate, "predicate": {}}
    return json.dumps(body).encode()


def envelope(signed, signature, kind=STATEMENT_TYPE):
    return {"payload": b64(signed), "payloadType": kind, "signatures": [{"sig": b64(signature), "keyid": ""}]}


def key_bundle(key, signed, kind=STATEMENT_TYPE):
    """A bundle with an envelope that a key has signed."""
    signature = key.sign(pre_authentication_encoding(kind, signed))
    return _bundle({"publicKey": {"hint": "x"}}, dsseEnvelope=envelope(signed, signature, kind))


def message_bundle(key, manifest):
    """A bundle with the signature of a manifest's own bytes."""
    digest = {"algorithm": "SHA2_256", "digest": b64(sha256(manifest).digest())}
    return _bundle({"publicKey": {"hint": "x"}}, messageSignature={"messageDigest": digest, "signature": b64(key.sign(manifest))})


def _bundle(material, **content):
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": {**material, "tlogEntries": []}, **content}).encode()


# ---- in the fake Docker Hub


def sig_tag(digest, suffix=".sig"):
    return f"{str(digest).replace(':', '-')}{suffix}"


def put_simple(hub, repository, digest, *layers, tag=None):
    """Put a manifest of signatures under the tag of a manifest: layers of (payload, signature in base64, other annotations)."""
    entries = [
        {
            "mediaType": SIMPLE,
            "digest": hub.add_blob(repository, signed),
            "size": len(signed),
            "annotations": {"dev.cosignproject.cosign/signature": signature, **(others[0] if others else {})},
        }
        for signed, signature, *others in layers
    ]
    return put_layers(hub, repository, tag or sig_tag(digest), entries)


def put_layers(hub, repository, tag, entries, **members):
    config = json.dumps({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    kind = "application/vnd.oci.image.config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": kind, "digest": hub.add_blob(repository, config), "size": len(config)},
        "layers": entries,
        **members,
    }
    return hub.add_manifest(repository, json.dumps(manifest).encode(), OCI_MANIFEST, tag)


def sign(hub, repository, digest, key, named=None):
    """Sign a manifest as `cosign sign --key` of version 2 does."""
    signed = payload(digest, named or f"docker.io/{repository}")
    return put_simple(hub, repository, digest, (signed, b64(key.sign(signed))))


def sign_bundle(hub, repository, digest, key, **about):
    """Sign a manifest as `cosign sign --key` of version 3 does."""
    return hub.add_referrer(repository, str(digest), BUNDLE, key_bundle(key, statement(digest, **about)))
