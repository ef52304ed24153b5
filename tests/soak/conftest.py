"""What the tests of clusters share: a Redis."""

import pytest

from tests.e2e.harness.cluster import RedisServer


@pytest.fixture
def redis(tmp_path):
    """A Redis of its own."""
    server = RedisServer(tmp_path)
    yield server
    server.close()
