"""A mirror of two worker processes."""

import socket

import pytest

from tests.workers.cluster import Cluster


@pytest.fixture
def manager(monkeypatch, tmp_path):
    """A service manager's socket, to which a mirror that is started sends its messages."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


@pytest.fixture
async def cluster(hub, tmp_path):
    """Two workers over an empty store."""
    async with Cluster(hub, tmp_path) as running:
        yield running
