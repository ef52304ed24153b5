"""A sigstore of the test's own: a certificate authority, a log of certificates, a log of signatures, and their trust root.

Certificates: sigstore/fulcio, docs/certificate-specification.md. Their timestamps: RFC 6962 section 3. The log's entries:
sigstore/rekor, types; its promise is a signature of the entry in canonical JSON (RFC 8785).
"""

import datetime as dt
import json
import struct
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirror.trust.claims import STATEMENT_TYPE, pre_authentication_encoding
from tests.trust.signing import BUNDLE, b64, envelope

ISSUER = "https://token.actions.example.com"
SUBJECT = "https://github.example.com/org/app/.github/workflows/release.yml@refs/heads/main"
SIGNED_AT = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
_SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


def _public(key):
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _sign(key, message):
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


class Identity:
    """A certificate for ten minutes, and its key."""

    def __init__(self, key, certificate):
        self.key, self.certificate = key, certificate

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self):
        return self.certificate.public_bytes(serialization.Encoding.DER)


class Sigstore:
    """Issues certificates, and logs signatures."""

    def __init__(self):
        self._authority, self._ct, self._rekor = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self._root = self._make_root()

    def _make_root(self):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-fulcio")])
        usage = x509.KeyUsage(*(n in (5, 6) for n in range(9)))
        return (
            x509.CertificateBuilder(name, name, self._authority.public_key(), x509.random_serial_number())
            .not_valid_before(SIGNED_AT - dt.timedelta(days=365))
            .not_valid_after(SIGNED_AT + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._authority.public_key()), critical=False)
            .sign(self._authority, hashes.SHA256())
        )

    @property
    def trust_root(self):
        """Its trust root, in JSON."""

        def log(key):
            public = {"rawBytes": b64(_public(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": {"start": start}}
            return {
                "baseUrl": "http://127.0.0.1:9",
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": b64(sha256(_public(key)).digest())},
            }

        start = "2020-01-01T00:00:00Z"
        der = self._root.public_bytes(serialization.Encoding.DER)
        authority = {
            "subject": {"organization": "test", "commonName": "test-fulcio"},
            "uri": "http://127.0.0.1:9",
            "certChain": {"certificates": [{"rawBytes": b64(der)}]},
            "validFor": {"start": start},
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._rekor)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self._ct)],
                "timestampAuthorities": [],
            }
        )

    def identity(self, subject=SUBJECT, issuer=ISSUER, valid_from=SIGNED_AT - dt.timedelta(minutes=1)):
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(*(n == 0 for n in range(9)))
        name = x509.RFC822Name(subject) if "@" in subject and "/" not in subject else x509.UniformResourceIdentifier(subject)
        encoded = issuer.encode()
        builder = (
            x509.CertificateBuilder(self._root.subject, x509.Name([]), key.public_key(), x509.random_serial_number())
            .not_valid_before(valid_from)
            .not_valid_after(valid_from + dt.timedelta(minutes=10))
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(_unknown("1.3.6.1.4.1.57264.1.1", encoded), critical=False)
            .add_extension(_unknown("1.3.6.1.4.1.57264.1.8", b"\x0c" + bytes([len(encoded)]) + encoded), critical=False)
        )
        precertificate = builder.sign(self._authority, hashes.SHA256())
        listed = _unknown(_SCT_LIST.dotted_string, self._timestamps(precertificate.tbs_certificate_bytes, valid_from))
        return Identity(key, builder.add_extension(listed, critical=False).sign(self._authority, hashes.SHA256()))

    def _timestamps(self, tbs, when):
        stamp = int(when.timestamp() * 1000)
        issuer = sha256(_public(self._authority)).digest()
        signed = struct.pack("!BBQH", 0, 0, stamp, 1) + issuer + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        signature = _sign(self._ct, signed)
        one = struct.pack("!B32sQHBBH", 0, sha256(_public(self._ct)).digest(), stamp, 0, 4, 3, len(signature)) + signature
        items = struct.pack("!HH", len(one) + 2, len(one)) + one
        return b"\x04" + (b"" if len(items) < 128 else b"\x81") + bytes([len(items)]) + items

    # ---- signatures

    def simple(self, identity, signed, when=SIGNED_AT):
        """The signature of a payload in cosign's older form: in base64, and the other annotations."""
        signature = _sign(identity.key, signed)
        entry = self._entry(self._hashedrekord(identity, signature, signed), when)
        log_entry = {"SignedEntryTimestamp": self._promise(entry), "Payload": entry}
        annotations = {
            "dev.sigstore.cosign/certificate": identity.pem.decode(),
            "dev.sigstore.cosign/bundle": json.dumps(log_entry),
        }
        return b64(signature), annotations

    def bundle(self, identity, signed, when=SIGNED_AT):
        """A bundle with an envelope around a statement."""
        signature = _sign(identity.key, pre_authentication_encoding(STATEMENT_TYPE, signed))
        body = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
                "payloadHash": {"algorithm": "sha256", "value": sha256(signed).hexdigest()},
                "signatures": [{"signature": b64(signature), "verifier": b64(identity.pem)}],
            },
        }
        return self._bundle(identity, body, when, dsseEnvelope=envelope(signed, signature))

    def message_bundle(self, identity, manifest, when=SIGNED_AT):
        """A bundle with the signature of a manifest's own bytes."""
        signature = _sign(identity.key, manifest)
        digest = {"algorithm": "SHA2_256", "digest": b64(sha256(manifest).digest())}
        body = self._hashedrekord(identity, signature, manifest)
        return self._bundle(identity, body, when, messageSignature={"messageDigest": digest, "signature": b64(signature)})

    def _hashedrekord(self, identity, signature, signed):
        data = {"hash": {"algorithm": "sha256", "value": sha256(signed).hexdigest()}}
        spec = {"signature": {"content": b64(signature), "publicKey": {"content": b64(identity.pem)}}, "data": data}
        return {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec}

    def _entry(self, body, when):
        log_id = sha256(_public(self._rekor)).hexdigest()
        raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        return {"body": b64(raw), "integratedTime": int(when.timestamp()), "logIndex": 0, "logID": log_id}

    def _promise(self, entry):
        return b64(_sign(self._rekor, json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()))

    def _bundle(self, identity, body, when, **content):
        entry = self._entry(body, when)
        raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        root = sha256(b"\0" + raw).digest()
        note = f"test - 1\n1\n{b64(root)}\n"
        signature = sha256(_public(self._rekor)).digest()[:4] + _sign(self._rekor, note.encode())
        proof = {
            "logIndex": "0",
            "rootHash": b64(root),
            "treeSize": "1",
            "hashes": [],
            "checkpoint": {"envelope": f"{note}\n— test {b64(signature)}\n"},
        }
        logged = {
            "logIndex": "0",
            "logId": {"keyId": b64(bytes.fromhex(entry["logID"]))},
            "kindVersion": {"kind": body["kind"], "version": body["apiVersion"]},
            "integratedTime": str(entry["integratedTime"]),
            "inclusionPromise": {"signedEntryTimestamp": self._promise(entry)},
            "inclusionProof": proof,
            "canonicalizedBody": entry["body"],
        }
        material = {"certificate": {"rawBytes": b64(identity.der)}, "tlogEntries": [logged]}
        return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, **content}).encode()


def _unknown(oid, value):
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
