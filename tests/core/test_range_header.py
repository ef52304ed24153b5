"""Ranges resolve as RFC 9110 and the clients' expectations demand, and always within the content."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.core.errors import InvalidRange, RangeNotSatisfiable
from mirror.core.ranges import (
    FULL,
    ByteRange,
    Full,
    content_range,
    if_range_matches,
    parse_content_range,
    parse_range,
)

SIZE = 5000
HUGE = "9" * 5000
ETAG = '"sha256:abc"'


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 5000),
        ("bytes=-500", 4500, 5000),
        ("bytes=-9999", 0, 5000),
        ("bytes=2000-5000", 2000, 5000),
        ("bytes=4999-", 4999, 5000),
        ("bytes=0-", 0, 5000),
        (f"bytes=0-{HUGE}", 0, 5000),
        (f"bytes=-{HUGE}", 0, 5000),
        (f"bytes={'0' * 5000}1-2", 1, 3),
        ("Bytes=0-1", 0, 2),
        ("bytes= 0-1 ", 0, 2),
        ("bytes=,0-1,", 0, 2),
    ],
)
def test_single_ranges(header, start, stop):
    """One range is cut to the content, with its end included on the wire and excluded here."""
    assert parse_range(header, SIZE) == (ByteRange(start, stop),)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=5000-",
        "bytes=5000-10000",
        "bytes=-0",
        "bytes=500-0",
        f"bytes={HUGE}-",
        f"bytes={HUGE}-{HUGE}",
        "bytes=1-0",
    ],
)
def test_not_satisfiable(header):
    """A single range beyond the end, of no bytes, or backwards raises RangeNotSatisfiable."""
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, SIZE)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=1-2;3-4",
        "bytes=+1-2",
        "bytes=1 - 2",
        "bytes=\u0661-\u0662",
        "bytes=0-1,x",
        "items=0-1",
        "0-1",
        "bytes=0-1\n",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(17)),
        "bytes=0-2999,2000-4999",
        "bytes=0-,0-",
        "bytes=6000-,7000-",
        "bytes=5-4,9-8",
    ],
)
def test_ignored(header):
    """Other units, garbage, too many ranges, and several that overlap or cannot be served give it all."""
    assert parse_range(header, SIZE) is FULL


def test_several_ranges():
    """Several ranges come in the order asked for, without those that cannot be served."""
    assert parse_range("bytes=10-19, 0-4,-5,6000-", SIZE) == (
        ByteRange(10, 20),
        ByteRange(0, 5),
        ByteRange(4995, 5000),
    )
    sixteen = parse_range("bytes=" + ",".join(f"{n}-{n}" for n in range(16)), SIZE)
    assert sixteen == tuple(ByteRange(n, n + 1) for n in range(16))


def test_empty_content():
    """Of empty content the last n bytes are all of it, and any place in it is out of range."""
    assert parse_range("bytes=-5", 0) is FULL
    for header in ("bytes=0-", "bytes=0-0", "bytes=-0"):
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, 0)


@given(
    st.text() | st.text(alphabet="bytes=0123456789-, ", max_size=40).map("bytes=".__add__),
    st.integers(0, 2**63),
)
@example("bytes=0-0,0-0", 1)
def test_always_within_the_content(header, size):
    """Whatever the header, no range is empty or leaves the content, and together they are not longer."""
    try:
        ranges = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    if isinstance(ranges, Full):
        return
    assert ranges
    assert all(0 <= part.start < part.stop <= size for part in ranges)
    assert sum(part.length for part in ranges) <= size


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
def test_content_range_round_trip(start, length, rest):
    """The Content-Range of a part reads back as that part, and asking for it gives it again."""
    part, size = ByteRange(start, start + length), start + length + rest
    assert parse_content_range(content_range(part, size)) == (part.start, part.stop, size)
    assert parse_range(f"bytes={part.start}-{part.stop - 1}", size) == (part,)


def test_content_range_of_a_416():
    """Without a part the header says how long the content is."""
    assert content_range(None, 7) == "bytes */7"


def test_content_range_of_unknown_size():
    """A size of * is unknown."""
    assert parse_content_range("bytes 5-9/*") == (5, 10, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes */7",
        "bytes 5-4/9",
        "bytes 0-9/9",
        "bytes 0-9",
        "items 0-1/2",
        "bytes 0-/9",
        "bytes=0-1/2",
        "bytes -1-2/9",
        f"bytes 0-{HUGE}/*",
    ],
)
def test_bad_content_range(text):
    """A Content-Range that is malformed or contradicts itself raises InvalidRange."""
    with pytest.raises(InvalidRange):
        parse_content_range(text)


@given(st.text() | st.text(alphabet="bytes 0123456789-/*").map("bytes ".__add__))
def test_arbitrary_content_range(text):
    """No text makes the parser raise anything but InvalidRange, and what it returns makes sense."""
    try:
        start, stop, size = parse_content_range(text)
    except InvalidRange:
        return
    assert 0 <= start < stop
    assert size is None or stop <= size


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, True),
        (ETAG, True),
        (f" {ETAG} ", True),
        (f"W/{ETAG}", False),
        ("sha256:abc", False),
        ('"other"', False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", False),
        ("*", False),
        ("", False),
    ],
)
def test_if_range(header, expected):
    """Only the very same strong tag, or no If-Range at all, lets a range apply."""
    assert if_range_matches(header, ETAG) is expected


def test_if_range_with_a_weak_tag_of_ours():
    """Weak tags never match, not even each other."""
    assert not if_range_matches('W/"a"', 'W/"a"')
