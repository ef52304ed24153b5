"""The table of what is served although upstream fails."""

import math

import pytest

from mirror import errors
from mirror.core.staleness import DAY, DELETED, TABLE, may_serve, said

MONTH = 30 * DAY

CASES = [
    # reason, age, served with stale_if_error of a month
    ("connect", MONTH, True),
    ("connect", MONTH + 1, False),
    ("timeout", MONTH, True),
    ("slow", MONTH, True),
    ("slow", MONTH + 1, False),
    ("server_error", MONTH, True),
    ("rate_limited", MONTH, True),
    ("rate_limited", MONTH + 1, False),
    ("cut", MONTH, True),
    ("protocol", MONTH, True),
    ("digest_mismatch", MONTH, True),
    ("busy", MONTH, True),
    ("credentials", DAY, True),
    ("credentials", DAY + 1, False),
    ("denied", 0, False),
    ("not_found", 0, False),
    (DELETED, MONTH, True),
    (DELETED, math.inf, True),
]


@pytest.mark.parametrize(("reason", "age", "served"), CASES)
def test_table(reason, age, served):
    """Outages serve up to `stale_if_error`, refused credentials for a day at most, answers never, what is kept for ever."""
    assert may_serve(reason, age, MONTH) is served


def test_nothing_stale_if_so_configured():
    """With `stale_if_error: 0` no outage serves anything."""
    assert [reason for reason in TABLE if may_serve(reason, 1, 0)] == ["offline", DELETED]


def test_clock_set_back():
    """A check in the future is one whose age nobody knows: old over nothing."""
    assert may_serve("connect", -1e9, 0)


def test_every_reason_has_its_row():
    """Each failure that an upstream can have is in the table, with words for people."""

    def reasons(kind):
        # Failures of other nodes and of a bucket lead to an upstream.
        if kind.__module__.startswith(("mirror.errors", "mirror.upstream")):
            yield kind.reason
        for child in kind.__subclasses__():
            yield from reasons(child)

    assert set(reasons(errors.UpstreamError)) <= set(TABLE)
    assert all(verdict.said for verdict in TABLE.values())


@pytest.mark.parametrize("reason", TABLE)
def test_words_fit_into_a_header(reason):
    """What is said can stand in a quoted string (RFC 9110 section 5.6.4), with the reason's own word."""
    text = said(reason)
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & {'"', "\\"}
    assert text.endswith(f"({reason})")


def test_what_is_kept_is_no_outage():
    """An upstream that has answered is not said to be one that cannot be asked."""
    assert "cannot be asked" in said("timeout")
    assert not [reason for reason in (DELETED, "credentials", "not_found", "denied") if "cannot be asked" in said(reason)]
