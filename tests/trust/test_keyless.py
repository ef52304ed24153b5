"""Signatures of identities, verified by the library of sigstore against a sigstore of the test's own."""

import datetime as dt
import json

import pytest

from mirror.core.digest import Digest
from mirror.core.names import PathPattern, Repository
from mirror.trust.judge import Judge, Subject
from mirror.trust.keyless import InvalidTrustRoot, Keyless, check_trust_root
from mirror.trust.rules import Identity, TrustRule
from mirror.trust.verdict import BundleSignature, Result, SimpleSignature
from tests.trust.signing import payload, statement
from tests.trust.sigstore_instance import ISSUER, SIGNED_AT, SUBJECT, Sigstore

RAW = b'{"schemaVersion":2}'
DIGEST = Digest.of(RAW)
SIGSTORE = Sigstore()
LATER = SIGNED_AT + dt.timedelta(hours=1)
IDENTITY = Identity(ISSUER, "https://github.example.com/org/*/.github/workflows/release.yml@refs/heads/main")


@pytest.fixture(scope="module")
def keyless(tmp_path_factory):
    path = tmp_path_factory.mktemp("root") / "trusted_root.json"
    path.write_text(SIGSTORE.trust_root)
    return Keyless(path, refresh=True)


def judge(keyless, signature, *identities):
    rule = TrustRule(PathPattern.parse("library/*"), identities=identities or (IDENTITY,))
    return Judge(rule, keyless).judge(Subject(Repository.parse("docker.io", "library/app"), DIGEST, RAW), [signature])


def simple(identity=None, digest=DIGEST, when=SIGNED_AT, sigstore=SIGSTORE, **changes):
    signed = payload(digest)
    signature, annotations = sigstore.simple(identity or sigstore.identity(), signed, when)
    entry = json.loads(annotations["dev.sigstore.cosign/bundle"])
    entry.update(changes)
    return SimpleSignature(signed, signature, annotations["dev.sigstore.cosign/certificate"], json.dumps(entry))


def bundle(identity=None, digest=DIGEST, when=SIGNED_AT, sigstore=SIGSTORE):
    return BundleSignature(sigstore.bundle(identity or sigstore.identity(), statement(digest), when))


def message(identity=None, manifest=RAW, when=SIGNED_AT, sigstore=SIGSTORE):
    return BundleSignature(sigstore.message_bundle(identity or sigstore.identity(), manifest, when))


@pytest.mark.parametrize("form", [simple, bundle, message])
def test_identity_in_each_form(keyless, form):
    """An identity of the rule makes a manifest trusted: as payload, as statement, and over the manifest's bytes."""
    verdict = judge(keyless, form())
    assert (verdict.result, verdict.why) == (Result.SIGNED, f"by {SUBJECT} ({ISSUER})")


@pytest.mark.parametrize("form", [simple, bundle, message])
@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ({"subject": "https://github.example.com/evil/app"}, "none of the rule's identities"),
        ({"subject": "someone@example.com"}, "none of the rule's identities"),
        ({"issuer": "https://evil.example.com"}, "none of the rule's identities"),
    ],
)
def test_other_identities(keyless, form, identity, reason):
    """Another subject, or the same one by another issuer, is not the rule's identity."""
    verdict = judge(keyless, form(SIGSTORE.identity(**identity)))
    assert verdict.result is Result.WRONG
    assert reason in verdict.why


@pytest.mark.parametrize("form", [simple, bundle, message])
def test_expired_identity(keyless, form):
    """A signature that was made after its certificate had expired does not count; an old one from before does."""
    assert judge(keyless, form(when=LATER)).result is Result.WRONG
    assert judge(keyless, form()).result is Result.SIGNED


@pytest.mark.parametrize("form", [simple, bundle, message])
def test_another_authority(keyless, form):
    """A certificate and a log entry of another sigstore do not count, whatever they say."""
    assert judge(keyless, form(sigstore=Sigstore())).result is Result.WRONG


@pytest.mark.parametrize("signature", [simple(digest=Digest.of(b"x")), bundle(digest=Digest.of(b"x")), message(manifest=b"{}")])
def test_copied_signature(keyless, signature):
    """A valid signature of another manifest does not count for this one."""
    assert judge(keyless, signature).result is Result.WRONG


def test_damaged(keyless):
    """A log entry that is missing, changed or garbage does not count, and raises nothing."""
    good = simple()
    for entry in ("", "[]", "nonsense", "{}", json.dumps({"Payload": {}}), "[" * 50_000):
        assert judge(keyless, SimpleSignature(good.payload, good.signature, good.certificate, entry)).result is Result.WRONG
    assert judge(keyless, simple(SignedEntryTimestamp=simple().signature)).result is Result.WRONG
    assert judge(keyless, SimpleSignature(good.payload, good.signature, "garbage", good.log_entry)).result is Result.WRONG
    raw = bundle().raw
    for wrong in (raw.replace(b'"inclusionProof"', b'"x"'), raw.replace(b'"treeSize": "1"', b'"treeSize": "2"')):
        assert judge(keyless, BundleSignature(wrong)).result is Result.WRONG


def test_mail_address(keyless):
    """The subject of a person is an e-mail address."""
    signature = bundle(SIGSTORE.identity("dev@example.com", "https://accounts.example.com"))
    assert judge(keyless, signature, Identity("https://accounts.example.com", "*@example.com")).result is Result.SIGNED
    assert judge(keyless, signature, Identity("https://accounts.example.com", "*@example.org")).result is Result.WRONG


def test_embedded_root():
    """Without a file the library's own root is used; not refreshed, it opens no connection."""
    assert judge(Keyless(None, refresh=False), bundle()).result is Result.WRONG


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"mediaType": "application/json"}'])
def test_no_trust_root(tmp_path, text):
    """A file that is no trust root is a mistake with a reason in one line."""
    path = tmp_path / "root.json"
    path.write_text(text)
    with pytest.raises(InvalidTrustRoot, match=r"is no trust root of sigstore: ."):
        check_trust_root(path)
