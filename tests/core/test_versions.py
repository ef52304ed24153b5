"""Versions are told from other tags and put in order, and a range holds what its words say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.errors import InvalidInput, InvalidVersionRange
from mirror.core.versions import Version, VersionRange

numbers = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(tuple)
suffixes = st.sampled_from(
    ["", "-rc1", "-rc2", "-rc10", "-rc01", "-alpine", "-alpine3.9", "-alpine3.21", "rc1", ".Final", "_beta"]
)
versions = st.builds(Version, numbers, suffixes)
ranges = st.builds(
    lambda low, high: VersionRange.parse(f">={dotted(min(low, high))} <{dotted((*max(low, high), 1))}"), numbers, numbers
)


def dotted(parts):
    return ".".join(map(str, parts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", Version((1,))),
        ("1.27.0", Version((1, 27, 0))),
        ("v1.27", Version((1, 27))),
        ("V2", Version((2,))),
        ("1.27-alpine", Version((1, 27), "-alpine")),
        ("3.14.0rc1", Version((3, 14, 0), "rc1")),
        ("5.0.0.Final", Version((5, 0, 0), ".Final")),
        ("1.2_beta", Version((1, 2), "_beta")),
        ("01.002", Version((1, 2))),
        ("20240115", Version((20240115,))),
    ],
)
def test_versions(text, expected):
    """Numbers with dots between them are a version, whatever v leads it and suffix ends it."""
    assert Version.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "latest", "v", "alpine-1.2", "1.", ".1", "1..2", "1.2.", "1 2", "1.2\n", "١", "1.2-é", "-1", "1" * 40, "1-" + "a" * 200],
)
def test_other_tags_are_no_versions(text):
    """Words, broken numbers and what is longer than any tag are no versions."""
    assert Version.parse(text) is None


@pytest.mark.parametrize(
    "ascending",
    [
        ["1", "1.0", "1.9", "1.10", "1.27", "1.27.0", "1.27.1", "2"],
        ["1.27-alpine", "1.27-rc1", "1.27-rc2", "1.27-rc10", "1.27", "1.27.0-rc1", "1.27.0"],
        ["1.27-alpine3.9", "1.27-alpine3.21"],
    ],
)
def test_order(ascending):
    """Numbers count as numbers, a missing one is lowest, and a suffix comes before the plain version."""
    parsed = [Version.parse(text) for text in ascending]
    assert all(lower < higher for place, higher in enumerate(parsed) for lower in parsed[:place])
    assert len(set(parsed)) == len(parsed)


@given(versions, versions, versions)
def test_order_is_total(one, two, three):
    """Of two versions exactly one relation holds, and the order is transitive."""
    assert (one < two) + (one == two) + (one > two) == 1
    assert (one <= two) == (one < two or one == two)
    if one < two and two < three:
        assert one < three


@given(versions)
def test_version_round_trip(version):
    """A version written as text reads back as itself, with a leading v or without."""
    assert Version.parse(str(version)) == version
    assert Version.parse(f"v{version}") == version


@given(
    st.text(max_size=20) | st.text(alphabet="v0123456789.-_rcx²", max_size=40), st.text(alphabet="0123456789.-rc²", max_size=40)
)
def test_arbitrary_tags_can_be_ordered(one, two):
    """No text makes parsing or ordering raise anything."""
    found = [version for version in map(Version.parse, (one, two)) if version is not None]
    assert len(sorted(found)) == len(found)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=1.25 <2", "1.25 1.25.0 1.99.9", "1 1.24.9 2 2.0 3"),
        (">=1.25,<2", "1.25 1.99", "1.24 2"),
        (" >= 1.25 , < 2 ", "1.25 1.99", "1.24 2"),
        (">1", "2 2.0.1 10", "0.9 1 1.0 1.99"),
        ("<=3.1", "1 3 3.0 3.1 3.1.5", "3.2 4"),
        ("<3.1", "3 3.0.9", "3.1 3.1.0 4"),
        ("1.2", "1.2 1.2.0 1.2.7", "1 1.1 1.20 1.3 2"),
        ("=1.2", "1.2 1.2.7", "1.1.9 1.3"),
        ("= v1.2", "1.2 1.2.7", "1.1.9 1.3"),
        ("~1.25", "1.25 1.25.9", "1.24 1.26"),
        ("~1.25.3", "1.25.3 1.25.9", "1.25 1.25.2 1.26"),
        ("~1", "1 1.9", "0.9 2"),
        ("^1.2", "1.2 1.2.3 1.99", "1 1.1 2"),
        ("^0.2", "0.2 0.2.9", "0.1 0.3 1"),
        ("^0.0", "0.0 0.0.7", "0 0.1"),
        ("1.x", "1 1.0 1.99", "0 2"),
        ("1.*", "1 1.0 1.99", "0 2"),
        ("1.2.X.x", "1.2 1.2.7", "1.3"),
        ("*", "0 1.2 99", ""),
        (">=1.25 <2 <1.27", "1.26.9", "1.27 1.24"),
        ("1.2", "1.2-alpine 1.2.7-rc1", "1.3-alpine"),
        ("<1.2", "1.1-alpine", "1.2-rc1"),
    ],
)
def test_ranges(text, inside, outside):
    """Each form of comparator holds for these versions and not for those."""
    wanted = VersionRange.parse(text)
    assert [tag for tag in inside.split() if not wanted.contains(Version.parse(tag))] == []
    assert [tag for tag in outside.split() if wanted.contains(Version.parse(tag))] == []
    assert VersionRange.parse(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "latest",
        ">=",
        ">=latest",
        "=>1",
        "!=1",
        "1.2-rc1",
        ">=1.x",
        "1.x.2",
        "1||2",
        "^",
        "1 - 2",
        ">2 <1",
        "1 2",
        "<0",
        "1" * 300,
    ],
)
def test_mistakes_in_ranges(text):
    """What is no range, or could never hold, is refused."""
    with pytest.raises(InvalidVersionRange):
        VersionRange.parse(text)


@given(ranges, versions)
def test_range_round_trip(wanted, version):
    """A range written as text holds for the same versions."""
    again = VersionRange.parse(str(wanted))
    assert again == wanted
    assert again.contains(version) == wanted.contains(version)


@given(numbers, versions)
def test_comparators_of_one_bound_are_each_others_opposites(bound, version):
    """Every version is either below a bound or not, and either above all that begin with it or not."""
    text = dotted(bound)

    def holds(operator):
        return VersionRange.parse(operator + text).contains(version)

    if bound != (0,):
        assert holds(">=") != holds("<")
    assert holds(">") != holds("<=")
    assert holds("=") == (holds(">=") and holds("<="))
    assert holds("=") == (version.numbers[: len(bound)] == bound)


@given(st.text(max_size=30) | st.text(alphabet=" ,<>=~^*x.v0123456789", max_size=30))
def test_arbitrary_text_is_a_range_or_invalid(text):
    """No text at all makes the parser raise anything but InvalidInput."""
    try:
        VersionRange.parse(text)
    except InvalidInput:
        return
