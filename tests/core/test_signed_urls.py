"""How long a redirect's target is good."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.signed_urls import reusable_for

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, 60),
        ({"verify": "1767323045-abc"}, 60),
        ({"X-Amz-Date": "20260102T030405Z", "X-Amz-Expires": "200"}, 170),
        ({"X-Amz-Date": "20260102T025405Z", "X-Amz-Expires": "720"}, 90),
        ({"X-Amz-Date": "20260102T030405Z", "X-Amz-Expires": "604800"}, 300),
        ({"X-Goog-Date": "20260102T030405Z", "X-Goog-Expires": "20"}, 0),
        ({"Expires": str(int(NOW.timestamp()) + 100)}, 70),
        ({"se": "2026-01-02T03:05:05Z", "sig": "x"}, 30),
        ({"se": "2026-01-02T03:05:05", "sig": "x"}, 30),
        ({"Expires": str(int(NOW.timestamp()) - 100)}, 0),
        ({"X-Amz-Expires": "1200"}, 0),
        ({"X-Amz-Date": "yesterday", "X-Amz-Expires": "1200"}, 0),
        ({"X-Amz-Date": "20260102T030405Z", "X-Amz-Expires": "9" * 30}, 0),
        ({"se": "never", "sig": "x"}, 0),
        ({"Expires": "soon"}, 60),
    ],
)
def test_signatures(query, expected):
    """The end is read from the signature, with a margin; nonsense is not reused, and what tells nothing for a minute."""
    assert reusable_for(query, "", NOW) == pytest.approx(expected)


@pytest.mark.parametrize("cache_control", ["no-store", "max-age=0, No-Cache", "private"])
def test_not_to_be_stored(cache_control):
    """A redirect that must not be stored is not."""
    assert reusable_for({}, cache_control, NOW) == 0


@given(st.dictionaries(st.sampled_from(["X-Amz-Date", "X-Amz-Expires", "Expires", "se", "sig"]), st.text(max_size=30)), st.text())
def test_arbitrary_text(query, cache_control):
    """No text makes the decision fail."""
    assert 0 <= reusable_for(query, cache_control, NOW + timedelta(days=1)) <= 300
