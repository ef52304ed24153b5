"""Dates in HTTP headers, of honest and of hostile upstreams."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.http_date import parse_http_date


@pytest.mark.parametrize(
    "text", ["Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00", "Wed, 21 Oct 2015 09:28:00 +0200"]
)
def test_date(text):
    """With another zone, or without one, it is the same time."""
    assert parse_http_date(text) == datetime(2015, 10, 21, 7, 28, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "soon", "Wed, 21 Oct 99999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +9999999999999999999"])
def test_no_date(text):
    assert parse_http_date(text) is None


@given(st.text() | st.text(alphabet="Wed, 0123456789:Oct GMT+-"))
def test_arbitrary_text(text):
    """No header makes it fail, and what it finds can be compared with any other time."""
    found = parse_http_date(text)
    assert found is None or isinstance(found.timestamp(), float)
