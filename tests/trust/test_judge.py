"""The verdict about a manifest by signatures of keys, in both forms."""

import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from mirror.core.digest import Digest
from mirror.core.names import PathPattern, Repository
from mirror.trust.judge import Judge, Subject
from mirror.trust.keys import PublicKey
from mirror.trust.rules import TrustRule
from mirror.trust.verdict import BundleSignature, Result, SimpleSignature
from tests.trust.signing import Key, b64, key_bundle, message_bundle, payload, statement

RAW = b'{"schemaVersion":2}'
DIGEST = Digest.of(RAW)
OTHER = Digest.of(b"another")
SUBJECT = Subject(Repository.parse("docker.io", "library/app"), DIGEST, RAW)
KEYS = {
    "P-256": Key.ecdsa(),
    "P-384 with SHA-384": Key.ecdsa(ec.SECP384R1(), hashes.SHA384()),
    "P-384 with SHA-256": Key.ecdsa(ec.SECP384R1(), hashes.SHA256()),
    "RSA": Key.rsa(),
    "Ed25519": Key.ed25519(),
}
KEY, STRANGER = KEYS["P-256"], Key.ecdsa()


def judge(*signatures, keys=(KEY,)):
    public = tuple(PublicKey.parse(key.pem, "key.pub") for key in keys)
    return Judge(TrustRule(PathPattern.parse("library/*"), public)).judge(SUBJECT, signatures)


def simple(key=KEY, signed=None, signature=None):
    signed = payload(DIGEST) if signed is None else signed
    return SimpleSignature(signed, b64(key.sign(signed)) if signature is None else signature)


@pytest.mark.parametrize("kind", KEYS)
def test_each_kind_of_key_in_each_form(kind):
    """A key of each supported kind makes a manifest trusted: as payload, as statement, and over the manifest's bytes."""
    key = KEYS[kind]
    for signature in (
        simple(key),
        BundleSignature(key_bundle(key, statement(DIGEST))),
        BundleSignature(message_bundle(key, RAW)),
    ):
        assert judge(signature, keys=[STRANGER, key]).result is Result.SIGNED


@pytest.mark.parametrize("name", ["docker.io/library/app", "index.docker.io/library/app", "app", "library/app", "app:1.0"])
def test_names_of_one_repository(name):
    """The long and the short names of a repository of Docker Hub are one."""
    assert judge(simple(signed=payload(DIGEST, name))).result is Result.SIGNED


WRONG = {
    "wrong key": simple(STRANGER),
    "copied from another digest": simple(signed=payload(OTHER)),
    "of another repository": simple(signed=payload(DIGEST, "docker.io/library/other")),
    "of another registry": simple(signed=payload(DIGEST, "ghcr.io/library/app")),
    "of no repository": simple(signed=payload(DIGEST, "")),
    "of another kind": simple(signed=payload(DIGEST, kind="atomic container signature")),
    "damaged payload": SimpleSignature(payload(DIGEST) + b" ", simple().signature),
    "damaged signature": simple(signature=simple().signature[:-12] + "AAAAAAAAAA=="),
    "not base64": simple(signature="%%%"),
    "payload is no JSON": simple(signed=b"\xff\xfe"),
    "payload is nested without end": simple(signed=b"[" * 100_000),
    "payload is a list": simple(signed=b"[]"),
    "payload without members": simple(signed=b"{}"),
    "certificate of an identity": SimpleSignature(payload(DIGEST), simple(STRANGER).signature, "-----BEGIN CERTIFICATE-----"),
    "bundle with a wrong key": BundleSignature(key_bundle(STRANGER, statement(DIGEST))),
    "bundle about another digest": BundleSignature(key_bundle(KEY, statement(OTHER))),
    "bundle about another repository": BundleSignature(key_bundle(KEY, statement(DIGEST, name="library/other"))),
    "bundle of another manifest": BundleSignature(message_bundle(KEY, b"{}")),
    "bundle with another payload type": BundleSignature(key_bundle(KEY, statement(DIGEST), "text/plain")),
    "bundle that is no JSON": BundleSignature(b"\x00\x01"),
    "bundle that is a list": BundleSignature(b"[]"),
    "bundle without content": BundleSignature(b'{"verificationMaterial": {}}'),
    "bundle without signature": BundleSignature(key_bundle(KEY, statement(DIGEST)).replace(b'"sig"', b'"gis"')),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_signatures(what):
    """A signature that does not count leaves a manifest untrusted, with the reason; one beside it that counts is enough."""
    verdict = judge(WRONG[what])
    assert verdict.result is Result.WRONG
    assert verdict.why
    assert judge(WRONG[what], simple()).result is Result.SIGNED


def test_reasons():
    """A verdict says whose signature it was, and what it is about; of many reasons it repeats a few."""
    assert "key key.pub" in judge(simple()).why
    assert str(OTHER) in judge(WRONG["copied from another digest"]).why
    assert "docker.io/library/other" in judge(WRONG["of another repository"]).why
    assert "only keys" in judge(WRONG["certificate of an identity"]).why
    many = judge(*(simple(signed=payload(Digest.of(bytes([n])))) for n in range(9)))
    assert many.why.endswith("and 6 more")


@pytest.mark.parametrize("predicate", ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document", None])
def test_an_attestation_is_no_signature(predicate):
    """A statement with another predicate does not count, even if the rule's key has made it."""
    attestation = BundleSignature(key_bundle(KEY, statement(DIGEST, predicate)))
    assert judge(attestation).result is Result.UNSIGNED
    assert "attestations (2)" in judge(attestation, attestation).why
    assert judge(attestation, simple()).result is Result.SIGNED


def test_no_signature():
    """Without any signature the verdict is `unsigned`."""
    assert judge().result is Result.UNSIGNED


def test_statement_about_several_manifests():
    """A statement counts for each of its subjects."""
    body = json.loads(statement(OTHER))
    body["subject"] += json.loads(statement(DIGEST))["subject"]
    assert judge(BundleSignature(key_bundle(KEY, json.dumps(body).encode()))).result is Result.SIGNED
