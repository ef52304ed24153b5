"""If-None-Match is compared as RFC 9110 says, and as registries are used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.ranges import etag_matches

from .strategies import digests

DIGEST = Digest.of(b"x")
OTHER = Digest.of(b"y")


@pytest.mark.parametrize(
    "header",
    [
        f'"{DIGEST}"',
        f'W/"{DIGEST}"',
        f"{DIGEST}",
        f' "{DIGEST}" ',
        f'"{OTHER}", "{DIGEST}"',
        f'W/"{OTHER}",W/"{DIGEST}"',
        f'"a,b", "{DIGEST}"',
        "*",
        " * ",
    ],
)
def test_matches(header):
    """The digest matches quoted or not, weak or not, alone or in a list, and * matches everything."""
    assert etag_matches(header, DIGEST)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f'"{OTHER}"',
        DIGEST.encoded,
        f'"{DIGEST}',
        f'"{DIGEST}x"',
        f"x{DIGEST}",
        '"*"',
        '"a", *',
        '"',
        ",",
    ],
)
def test_does_not_match(header):
    """Other tags, parts of the digest, and a quoted or listed star do not match."""
    assert not etag_matches(header, DIGEST)


@given(st.text(alphabet='W/"*, sha256:ab') | st.text(), digests)
def test_arbitrary_text(header, digest):
    """A header that does not contain the digest never matches, except for the star."""
    assert etag_matches(header, digest) is (header.strip() == "*")
