"""Tokens of nodes: they sign one request to one node, for a minute."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.hmac_token import MAX_AGE_S, InvalidToken, SignedRequest, sign, verify

SECRET, OTHER = b"s" * 32, b"o" * 32
REQUEST = SignedRequest("GET", "/v2/docker.io/library/app/blobs/sha256:00?urgency=CLIENT", "bytes=5-", "http://10.0.0.1:5002")
NONCE = "0" * 32
NOW = 1_700_000_000.0

plain = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20)


def test_signed_request_is_accepted():
    assert verify([SECRET], REQUEST, sign(SECRET, REQUEST, NOW, NONCE), NOW) == NONCE


def test_every_secret_of_a_rotation_counts():
    assert verify([OTHER, SECRET], REQUEST, sign(SECRET, REQUEST, NOW, NONCE), NOW) == NONCE


@pytest.mark.parametrize("field", ["method", "target", "range", "receiver"])
def test_another_request_is_refused(field):
    token = sign(SECRET, REQUEST, NOW, NONCE)
    with pytest.raises(InvalidToken):
        verify([SECRET], replace(REQUEST, **{field: "other"}), token, NOW)


def test_another_secret_is_refused():
    with pytest.raises(InvalidToken):
        verify([OTHER], REQUEST, sign(SECRET, REQUEST, NOW, NONCE), NOW)


def test_no_secret_accepts_nothing():
    with pytest.raises(InvalidToken):
        verify([], REQUEST, sign(SECRET, REQUEST, NOW, NONCE), NOW)


@pytest.mark.parametrize("age", [-MAX_AGE_S - 1, MAX_AGE_S + 1])
def test_another_time_is_refused(age):
    with pytest.raises(InvalidToken, match="time differs by 61 s"):
        verify([SECRET], REQUEST, sign(SECRET, REQUEST, NOW, NONCE), NOW + age)


@given(st.text(max_size=200))
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidToken):
        verify([SECRET], REQUEST, text, NOW)


@given(st.tuples(plain, plain, plain, plain), st.tuples(plain, plain, plain, plain))
def test_different_requests_have_different_texts(one, two):
    """No field can take over a part of its neighbour."""
    assert (SignedRequest(*one).text(0, NONCE) == SignedRequest(*two).text(0, NONCE)) == (one == two)


@pytest.mark.parametrize("field", ["target", "range"])
def test_bytes_that_are_no_text_are_refused(field):
    """The server hands out such bytes of a header as lone surrogates; anybody can send them."""
    with pytest.raises(InvalidToken):
        verify([SECRET], replace(REQUEST, **{field: "bytes=\udcff"}), sign(SECRET, REQUEST, NOW, NONCE), NOW)
