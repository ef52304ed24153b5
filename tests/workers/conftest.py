"""A mirror of two worker processes."""

import pytest

from tests.workers.cluster import Cluster


@pytest.fixture
async def cluster(hub, tmp_path):
    """Two workers over an empty store."""
    async with Cluster(hub, tmp_path) as running:
        yield running
