"""The `hub` fixture."""

from collections.abc import AsyncIterator

import pytest

from .hub import FakeHub


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    """A fake Docker Hub, empty, on the test's event loop."""
    async with FakeHub() as running:
        yield running
