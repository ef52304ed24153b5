"""Failures of upstream that nodes share: what one has met, the others repeat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.cluster.failures import decode_failure, encode_failure
from mirror.core.retry import LONGEST_RETRY_AFTER
from mirror.errors import (
    DigestMismatch,
    UpstreamBusy,
    UpstreamDisconnected,
    UpstreamFailing,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)


@pytest.mark.parametrize("kind", [UpstreamFailing, UpstreamRateLimited, UpstreamTimeout, UpstreamUnreachable])
@pytest.mark.parametrize("wait", [None, 90.0])
def test_outage_is_repeated(kind, wait):
    error = decode_failure(encode_failure(kind("down | since noon", retry_after=wait)))
    assert type(error) is kind
    assert str(error) == "another node has asked: down | since noon"
    assert error.retry_after == (wait or 1.0)
    assert not error.sent


@pytest.mark.parametrize("error", [UpstreamBusy("no connection"), UpstreamDisconnected("cut"), DigestMismatch("other")])
def test_what_concerns_one_node_is_not_shared(error):
    assert encode_failure(error) is None


def test_repeated_failure_is_not_shared_again():
    assert encode_failure(UpstreamFailing("503").again("remembered", 5.0)) is None


@pytest.mark.parametrize("wait", ["9" * 400, "9" * 5000, "999999999"])
def test_wait_that_nobody_means(wait):
    """Clients are told it as Retry-After."""
    error = decode_failure(f"timeout|{wait}|down")
    assert error is None or error.retry_after == LONGEST_RETRY_AFTER


@given(st.text())
def test_any_text_can_be_read(text):
    """Of another version, or damaged: then upstream is asked."""
    decode_failure(text)
