"""Fixtures for all tests: the fake Hub, and a whole mirror in this process that has it as its upstream."""

from __future__ import annotations

import pytest

from tests.fakehub.plugin import hub
from tests.mirrors import MirrorUnderTest

__all__ = ["hub"]


@pytest.fixture
async def mirror(hub, tmp_path):
    """A mirror of the fake Hub, on free ports, with an empty store."""
    async with MirrorUnderTest(hub, tmp_path / "store") as under_test:
        yield under_test
