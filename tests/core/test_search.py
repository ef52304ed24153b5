"""How well a name matches the text of a search."""

import pytest

from mirror.core.search import distance, search_text


@pytest.mark.parametrize(
    ("name", "term", "expected"),
    [
        ("library/nginx", "nginx", 0),
        ("library/nginx", "library/nginx", 0),
        ("library/nginx", " NGINX ", 0),
        ("owner/nginx", "nginx", 1),
        ("library/nginx-tools", "nginx", 2),
        ("owner/nginx-tools", "nginx", 2),
        ("ngi/x", "ngi", 2),
        ("owner/my-nginx", "nginx", 3),
        ("anything", "", 2),
    ],
)
def test_distance(name, term, expected):
    assert distance(name, search_text(term)) == expected
