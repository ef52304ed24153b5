"""Durations and sizes are read as operators write them, and mistakes are told with what is allowed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.errors import InvalidQuantity
from mirror.core.units import format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60),
        ("5m", 300),
        ("1h", 3600),
        ("30d", 2_592_000),
        ("2w", 1_209_600),
        ("1h30m", 5400),
        ("1d 2h 3m 4s", 93_784),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("5M", 300),
        (" 60s ", 60),
        ("0s", 0),
        ("0", 0),
        (0, 0),
        (0.0, 0),
    ],
)
def test_parse_duration(text, seconds):
    """Durations have units, largest first, and only 0 needs none."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "60",
        60,
        1.5,
        "s",
        "-1s",
        "1x",
        "1m1h",
        "1s1s",
        "1 s",
        "1h,30m",
        "1e3s",
        ".5s",
        "١s",
        "inf",
        "nan",
        math.inf,
        math.nan,
        True,
        False,
        "9" * 16 + "s",
    ],
)
def test_bad_durations(value):
    """Anything else raises InvalidQuantity, which says what is allowed."""
    with pytest.raises(InvalidQuantity, match="such as 500ms, 60s"):
        parse_duration(value)


@given(st.integers(0, 10**12))
def test_duration_round_trip(milliseconds):
    """A duration that is written is read as the same number of milliseconds."""
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (60, "1m"),
        (5400, "1h30m"),
        (2_592_000, "30d"),
        (93_784, "1d2h3m4s"),
        (-90, "-1m30s"),
        (0.0001, "0s"),
    ],
)
def test_format_duration(seconds, text):
    """Durations are written with the units they need, from days to milliseconds."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan])
def test_only_finite_durations_can_be_written(seconds):
    """Infinite durations raise InvalidQuantity."""
    with pytest.raises(InvalidQuantity):
        format_duration(seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("50GiB", 50 * 2**30),
        ("10GB", 10**10),
        ("123", 123),
        (123, 123),
        (0, 0),
        ("0", 0),
        ("5B", 5),
        ("1.5kib", 1536),
        ("10 mb", 10**7),
        ("2TiB", 2**41),
        ("1PB", 10**15),
        ("0.1KB", 100),
        ("0.3B", 0),
    ],
)
def test_parse_bytes(text, count):
    """Sizes have binary or decimal units or none, in any case."""
    assert parse_bytes(text) == count


@pytest.mark.parametrize("value", ["", "GiB", "-1", -1, "1G", "1K", "1Gib/s", "1e9", "1,5GB", True, 1.5, None, "\u0661"])
def test_bad_sizes(value):
    """Anything else, ambiguous units included, raises InvalidQuantity, which says what is allowed."""
    with pytest.raises(InvalidQuantity, match="units: B, KB to PB, KiB to PiB"):
        parse_bytes(value)


@given(st.integers(0, 2**60))
def test_sizes_are_close(count):
    """A size that is written is read as the same size to within what one decimal can say."""
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.05)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (50 * 2**30, "50GiB"),
        (2**70, "1048576PiB"),
    ],
)
def test_format_bytes(count, text):
    """Sizes are written in the largest binary unit that fits."""
    assert format_bytes(count) == text


@given(st.text() | st.text(alphabet="0123456789. dhmswKMGTPiB"))
def test_arbitrary_text(text):
    """No text makes the parsers raise anything but InvalidQuantity, and nothing is negative or endless."""
    for parse in (parse_duration, parse_bytes):
        try:
            value = parse(text)
        except InvalidQuantity:
            continue
        assert 0 <= value < math.inf
