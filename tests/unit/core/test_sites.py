"""Hosts are of one site only if nobody else can get a name there."""

import pytest

from mirror.core.sites import same_site


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("auth.docker.io", "registry-1.docker.io", True),
        ("docker.io", "a.b.docker.io", True),
        ("docker.io", "docker.com", False),
        ("a.azurecr.io", "b.azurecr.io", False),
        ("a.com.au", "b.com.au", False),
        ("x.a.com.au", "y.a.com.au", False),
        ("10.0.0.1", "11.0.0.1", False),
        ("registry", "registry", True),
        ("registry", "token", False),
        ("::1", "::2", False),
        ("a.docker.io.", "b.docker.io.", False),
        ("a.", "b.", False),
        ("", "a.io", False),
    ],
)
def test_same_site(one, other, expected):
    """Equal hosts and hosts under one registered domain belong together, in either order."""
    assert same_site(one, other) is expected
    assert same_site(other, one) is expected
