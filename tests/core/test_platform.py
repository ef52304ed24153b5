"""Platforms are read and compared as clients choose them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.errors import InvalidPlatform
from mirror.core.platform import Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64", "v8")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
    ],
)
def test_parse(text, expected):
    """Platforms are read in any case, and kernel names of architectures become those of Go."""
    assert Platform.parse(text) == expected


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/am d64", "linux/\u00e9"])
def test_invalid(text):
    """Anything but two or three plain parts raises InvalidPlatform."""
    with pytest.raises(InvalidPlatform):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64"), True),
        ("linux/amd64", Platform("linux", "amd64", "v3"), True),
        ("linux/amd64", Platform("windows", "amd64"), False),
        ("linux/amd64", Platform("linux", "arm64"), False),
        ("linux/amd64", Platform("unknown", "unknown"), False),
        ("linux/amd64", None, False),
        ("linux/arm64/v8", Platform("linux", "arm64"), True),
        ("linux/arm64", Platform("linux", "arm64", "v8"), True),
        ("linux/arm/v7", Platform("linux", "arm"), True),
        ("linux/arm/v6", Platform("linux", "arm", "v7"), False),
        ("linux/arm/v6", Platform("linux", "arm"), False),
    ],
)
def test_matches(wanted, offered, expected):
    """System and architecture have to be equal, the variant where one is asked for."""
    assert Platform.parse(wanted).matches(offered) is expected


@given(st.text() | st.text(alphabet="ab/8_"))
def test_round_trip_or_invalid(text):
    """What parses reads back from its own text as an equal platform that matches itself."""
    try:
        platform = Platform.parse(text)
    except InvalidPlatform:
        return
    assert Platform.parse(str(platform)) == platform
    assert platform.matches(platform)
