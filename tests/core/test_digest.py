"""Digests are accepted strictly and compare by content."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest

from .strategies import digests

HEX = "a" * 64


@given(digests)
def test_text_round_trip(digest):
    """A digest written as text reads back as an equal digest with an equal hash."""
    again = Digest.parse(str(digest))
    assert again == digest
    assert hash(again) == hash(digest)


@given(st.binary(max_size=64), st.sampled_from(["sha256", "sha512"]))
def test_of_is_the_plain_hash(data, algorithm):
    """The digest of bytes is what hashlib says, and a fed hasher arrives at the same."""
    digest = Digest.of(data, algorithm)
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    hasher = digest.hasher()
    hasher.update(data)
    assert hasher.hexdigest() == digest.encoded


def test_each_hasher_is_fresh():
    """Two hashers of one digest do not share state."""
    digest = Digest.of(b"x")
    digest.hasher().update(b"something else")
    assert digest.hasher().hexdigest() == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        HEX,
        "sha256:" + HEX[:-1],
        "sha256:" + HEX + "a",
        "sha256:" + HEX.upper(),
        "SHA256:" + HEX,
        "sha256:" + HEX + "\n",
        "sha512:" + HEX,
        "sha384:" + "a" * 96,
        "blake3:" + HEX,
        "md5:" + "a" * 32,
        "sha256:" + "g" * 64,
        "sha256:" + "\u0661" * 64,
        "sha256:../" + "a" * 61,
        " sha256:" + HEX,
        "sha256:sha256:" + HEX,
    ],
)
def test_anything_else_is_refused(text):
    """Other algorithms, lengths, upper case and surroundings raise InvalidDigest."""
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@given(st.text() | st.from_regex(r"sha(256|512):[0-9a-fA-F]*"))
def test_accepts_exactly_the_grammar(text):
    """Whatever the text, it is accepted if and only if the grammar accepts it."""
    valid = re.fullmatch(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}", text) is not None
    try:
        assert str(Digest.parse(text)) == text
        assert valid
    except InvalidDigest:
        assert not valid


def test_unknown_algorithm_cannot_be_computed():
    """An algorithm outside the accepted ones raises InvalidDigest, not an error of hashlib."""
    with pytest.raises(InvalidDigest):
        Digest.of(b"", "md5")
