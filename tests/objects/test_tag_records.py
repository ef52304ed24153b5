"""Records of tags in a bucket: what is written is read, and anything else is refused by an error that the caller expects."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.objects.tag_records import read_tag, write_tag

DIGEST = "sha256:" + "a" * 64
MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"
GOOD = {"digest": DIGEST, "media_type": MEDIA_TYPE, "size": 424, "checked": 900.5, "changed": 300.0}
NOW = 1000.0


def test_what_is_written_is_read():
    record = TagRecord(Digest.parse(DIGEST), MEDIA_TYPE, 424, 900.5, 300.0, 0.0)
    assert read_tag(write_tag(record), NOW) == record


def test_times_to_come_count_as_now():
    """Else a clock that is off, or a writer that lies, would have a tag be fresh for years."""
    record = read_tag(json.dumps({**GOOD, "checked": 9e12, "changed": 9e12}).encode(), NOW)
    assert (record.checked, record.changed) == (NOW, NOW)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(b"[" * 4000, id="deep"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"9" * 4000, id="digits"),
        *(
            pytest.param(json.dumps({**GOOD, name: value}).encode(), id=f"{name}-{number}")
            for name, values in {
                "digest": [None, 1, "sha256:", "sha256:../..", [DIGEST]],
                "media_type": [None, "", "text", "a/b\r\nX: y", "a/b; c", 1, "a/" + "b" * 200],
                "size": [None, True, -1, 1.5, "424", 10**30],
                "checked": [None, True, "1", float("nan"), float("inf"), 10**400],
                "changed": [None, float("-inf"), {}],
            }.items()
            for number, value in enumerate(values)
        ),
    ],
)
def test_what_is_no_record(data):
    with pytest.raises(InvalidInput):
        read_tag(data, NOW)


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_nothing_else_is_raised(data):
    with pytest.raises(InvalidInput):
        read_tag(data, NOW)
