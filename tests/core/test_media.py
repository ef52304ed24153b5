"""Media types come without parameters, and upstream is always asked for all of them."""

import pytest

from mirror.core import media


@pytest.mark.parametrize(
    "text",
    ["Application/JSON", "application/json;charset=utf-8", " application/json ; a=b; q=1"],
)
def test_parameters_are_stripped(text):
    """Parameters, surrounding space and case do not make another media type."""
    assert media.strip_parameters(text) == "application/json"


def test_upstream_is_asked_for_everything():
    """The Accept sent upstream names every modern type and ends with the wildcard, but not schema 1."""
    items = media.UPSTREAM_ACCEPT.split(", ")
    assert set(items[:-1]) == media.MANIFEST_TYPES | media.INDEX_TYPES
    assert items[-1] == "*/*"
    assert not media.SCHEMA1_TYPES & set(items)
