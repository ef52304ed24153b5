"""Tags that belong to another manifest."""

import pytest

from mirror.core.digest import Digest
from mirror.core.names import Tag
from mirror.core.signatures import signature_tags, subject_of

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)


def test_tags_of_a_digest():
    """The fallback for referrers, and cosign's three."""
    assert [str(tag) for tag in signature_tags(DIGEST)] == [f"sha256-{HEX}{suffix}" for suffix in ("", ".sig", ".att", ".sbom")]
    assert all(subject_of(tag) == DIGEST for tag in signature_tags(DIGEST))


def test_tags_that_do_not_tell():
    """Of other algorithms the tag holds a part of the digest only."""
    assert signature_tags(Digest("sha512", HEX * 2)) == ()


@pytest.mark.parametrize(
    "text", ["1", f"sha256-{HEX[:-1]}", f"sha256-{HEX}.x", f"sha256-{HEX}.sig.sig", f"sha256-{HEX.upper()}", f"sha512-{HEX}", HEX]
)
def test_other_tags(text):
    """Any other tag is about nothing but itself."""
    assert subject_of(Tag.parse(text)) is None
