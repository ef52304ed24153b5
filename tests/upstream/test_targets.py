"""Targets of redirects, whatever the registry that redirects says."""

from types import SimpleNamespace

import pytest
from yarl import URL

from mirror.upstream.requests import UpstreamRequest
from mirror.upstream.targets import RedirectTargets

TARGET = URL("https://cdn.example/blob?signature=x")


@pytest.mark.parametrize("date", ["", "nonsense", "Thu, 01 Jan 2026 00:00:00 +99999999999999", "Thu, 01 Jan 99999 00:00:00 GMT"])
def test_date_that_is_none(date):
    """A Date header that is no date costs nothing: the own clock is used."""
    targets, request = RedirectTargets(), UpstreamRequest("blob", "library/app", "blobs/sha256:abc")
    targets.keep(request, SimpleNamespace(headers={"Date": date}), TARGET, 0.0)
    assert targets.get(request, 1.0) == TARGET
