"""Pagination links are read leniently and written so that every client can follow them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.errors import InvalidPage
from mirror.core.links import format_link, next_page, next_query, page_params, parse_link_next, parse_page


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['</v2/a/tags/list?n=2&last=b>; rel="next"'], "/v2/a/tags/list?n=2&last=b"),
        (["<https://x.io/v2/a/tags/list?last=b>;rel=next"], "https://x.io/v2/a/tags/list?last=b"),
        (['</p>; rel="prev", </n>; rel="next"'], "/n"),
        (['</p>; rel="prev"', '</n>; rel="next"'], "/n"),
        (['</n>; title="a, b; rel=prev"; REL="last NEXT"'], "/n"),
        (['</a,b>; rel="next"'], "/a,b"),
        (['</p>; rel="prev"'], None),
        (["</n>"], None),
        (['</n>; rel="nextpage"'], None),
        (["rel=next"], None),
        ([""], None),
        ([], None),
    ],
)
def test_parse_link_next(headers, expected):
    """The link whose relations include next is found, in any of the forms of RFC 8288."""
    assert parse_link_next(headers) == expected


@given(st.lists(st.text() | st.text(alphabet='<>;,"\\ rel=next/')))
def test_arbitrary_headers(headers):
    """No header makes the parser fail."""
    target = parse_link_next(headers)
    assert target is None or any(target in header for header in headers)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/v2/a/tags/list?n=2&last=b%2Fc", {"n": "2", "last": "b/c"}),
        ("https://x.io/v2/?last=", {"last": ""}),
        ("/v2/", {}),
        ("https://[::1", {}),
        ("/?" + "&".join("a" * 100), {}),
    ],
)
def test_next_query(url, expected):
    """The query is decoded, and a senseless URL has none."""
    assert next_query(url) == expected


@given(st.text())
def test_arbitrary_urls(url):
    """No URL makes reading its query fail."""
    assert isinstance(next_query(url), dict)


def test_format_link():
    """The link is relative, encoded, and names the relation the way clients expect."""
    link = format_link("/v2/library/nginx/tags/list", {"n": "2", "last": "a b", "ns": "docker.io"})
    assert link == '</v2/library/nginx/tags/list?n=2&last=a+b&ns=docker.io>; rel="next"'


def test_format_link_keeps_an_encoded_path():
    """What the client had encoded is not encoded again, and nothing can end the target early."""
    assert format_link('/v2/a%2Fb/>"\r\n', {}) == '</v2/a%2Fb/%3E%22%0D%0A>; rel="next"'


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.dictionaries(st.text(alphabet="abn", min_size=1), st.text(), max_size=4),
)
def test_round_trip(path, params):
    """What is written is found again, with its query, in one line of plain ASCII."""
    link = format_link("/" + path, params)
    assert link.isascii()
    assert link.isprintable()
    target = parse_link_next([link])
    assert target is not None
    assert next_query(target) == params


def test_format_link_of_text_that_cannot_be_encoded():
    """Half a character, as a decoded request line may contain, is replaced and does not fail."""
    assert format_link("/\ud800", {"last": "\ud800"}) == '</%3F?last=%3F>; rel="next"'


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/a/tags/list?next_page=a/b+c==", "next_page=a/b+c=="),
        ("?last=%2f%41&n=2#x", "last=%2f%41&n=2"),
        ("/?a=%zz%", "a=%25zz%25"),
        ('/?a="b c"ü', "a=%22b%20c%22%C3%BC"),
    ],
)
def test_next_page(target, expected):
    """The query is kept as it was written, but for what no query may contain."""
    assert next_page(target) == parse_page(expected) == expected


@pytest.mark.parametrize("target", ["/v2/a/tags/list", "/?", "https://[::1?a=b", "/?" + "a" * 3000])
def test_link_without_a_page(target):
    """A link without a query, or with one that clients could not send back, leads to no page."""
    with pytest.raises(InvalidPage):
        next_page(target)


@given(st.text())
def test_arbitrary_targets(target):
    """Whatever upstream's link says, there is no page, or one that clients may send back."""
    try:
        page = next_page(target)
    except InvalidPage:
        return
    assert parse_page(page) == page


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("n=2&last=a%2Fb", {"n": "2", "last": "a/b"}),
        ("artifactType=a", {"artifactType": "a"}),
        ("n=2&n=3", {"page": "n=2&n=3"}),
        ("n=2&&last=a", {"page": "n=2&&last=a"}),
        ("next_page=a%2F==&n=2", {"page": "next_page=a%2F==&n=2"}),
    ],
)
def test_page_params(query, expected):
    """Only a query of the specification's own form is taken apart."""
    assert page_params(query) == expected
