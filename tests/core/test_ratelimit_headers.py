"""The pull limit is read where it makes sense and ignored where it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.pull_quota import parse_rate_limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100;w=21600", (100, 21600)),
        (" 76 ; w = 21600 ", (76, 21600)),
        ("0;w=21600", (0, 21600)),
        ("5000", (5000, None)),
        ("100;x=1;w=60", (100, 60)),
        ("100;w=x", (100, None)),
        ("100, 100;w=60", (100, None)),
        ("100;w=60, 1000;w=3600", (100, 60)),
        (None, None),
        ("", None),
        ("-1;w=60", None),
        ("abc", None),
        ("100x", None),
        (";w=60", None),
        ("\u0661;w=60", None),
        ("9" * 5000, None),
    ],
)
def test_parse(text, expected):
    """The number and its window are read, and a header that makes no sense is no limit."""
    assert parse_rate_limit(text) == expected


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))
def test_round_trip(value, window):
    """Any limit in Docker Hub's form reads back as its two numbers."""
    assert parse_rate_limit(f"{value};w={window}") == (value, window)


@given(st.text() | st.text(alphabet="0123456789;,w= "))
def test_arbitrary_text(text):
    """No header makes the parser fail."""
    limit = parse_rate_limit(text)
    assert limit is None or limit.value >= 0
