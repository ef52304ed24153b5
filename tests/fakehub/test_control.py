"""The fake in a process of its own, and its remote control."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.support.waiting import LIMIT, eventually

from .bodies import digest_of


class Remote:
    """A fake hub elsewhere."""

    def __init__(self, session: aiohttp.ClientSession, where: dict[str, Any]) -> None:
        self.session = session
        self.where = where

    async def tell(self, method: str, path: str, body: object = None) -> Any:
        async with self.session.request(method, self.where["control"] + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def blob(self, repository: str, digest: str) -> tuple[int, bytes]:
        url = f"{self.where['url']}/v2/{repository}/blobs/{digest}"
        async with self.session.get(url) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def remote() -> AsyncIterator[Remote]:
    command = [sys.executable, "-m", "tests.fakehub", "--auth", "none", "--image", "library/big:1=1MiB,5kB"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT):
            where = json.loads(await process.stdout.readline())
        async with aiohttp.ClientSession(requote_redirect_url=False) as session:
            yield Remote(session, where)
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_another_process(remote: Remote) -> None:
    """The process says where it is, serves its images, counts, and ends cleanly on SIGTERM."""
    big = remote.where["images"]["library/big:1"]["layers"][0]
    assert big["size"] == 1 << 20
    status, data = await remote.blob("library/big", big["digest"])
    assert (status, digest_of(data)) == (200, big["digest"])
    assert await remote.tell("GET", "/count?host=cdn&method=GET") == {"count": 1, "bytes_sent": 1 << 20}
    seen = await remote.tell("GET", f"/requests?digest={big['digest']}&host=cdn")
    assert [(each["status"], each["finished"]) for each in seen] == [(200, True)]
    await remote.tell("POST", "/reset")
    assert (await remote.tell("GET", "/"))["requests"] == 0


async def test_scripts_and_settings(remote: Remote) -> None:
    """Faults, gates, settings and content can be given from outside."""
    layers = [{"files": {"etc/a": "b"}}]
    image = await remote.tell("POST", "/images", {"repository": "acme/a", "tag": "1", "layers": layers})
    digest = image["layers"][0]["digest"]
    faults = [{"fault": "Status", "status": 503}]
    added = await remote.tell("POST", "/script", {"rule": {"kind": "blob"}, "faults": faults})
    assert (await remote.blob("acme/a", digest))[0] == 503
    assert (await remote.tell("GET", f"/script/{added['id']}"))["used"] == 1
    gate = await remote.tell("POST", "/script", {"rule": {"kind": "cdn"}, "faults": [{"fault": "Gate", "after": 1}]})
    asking = asyncio.create_task(remote.blob("acme/a", digest))
    await eventually(lambda: remote.tell("GET", f"/script/{gate['id']}"), holds=lambda seen: seen["reached"][0])
    assert not asking.done()
    await remote.tell("POST", f"/script/{gate['id']}/release")
    assert (await asking)[0] == 200
    assert (await remote.tell("POST", "/settings", {"auth": "bearer"}))["auth"] == "bearer"
    assert (await remote.blob("acme/a", digest))[0] == 401
    await remote.tell("POST", "/stop")
    with pytest.raises(aiohttp.ClientConnectionError):
        await remote.blob("acme/a", digest)
    await remote.tell("POST", "/start")
    assert (await remote.blob("acme/a", digest))[0] == 401
