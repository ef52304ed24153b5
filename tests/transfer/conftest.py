"""Fixtures for bundles on their way into a mirror."""

import io
import json
from types import SimpleNamespace

import pytest
import pytest_asyncio

from tests.mirror.conftest import blobs_only, log, scans, shared_hub, shared_mirror

__all__ = ["blobs_only", "log", "scans", "shared_hub", "shared_mirror"]

TAR = {"Content-Type": "application/x-tar"}


def sender(mirror):
    """Return a function that sends a bundle to a mirror's admin address, and returns status and answer."""

    async def send(data, name=None):
        url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/import"
        query, body = {} if name is None else {"as": name}, io.BytesIO(data) if isinstance(data, bytes) else data
        async with mirror.session.post(url, data=body, headers=TAR, params=query) as response:
            answer = json.loads(await response.read())
        images = [SimpleNamespace(**image) for image in answer.get("images", ())]
        return SimpleNamespace(status=response.status, answer=answer, error=answer.get("error"), images=images)

    return send


@pytest.fixture
def send(mirror):
    """Sends a bundle to `mirror`."""
    return sender(mirror)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def send_shared(shared_mirror):
    """Sends a bundle to `shared_mirror`."""
    return sender(shared_mirror)
