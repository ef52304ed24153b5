"""Faults happen to the requests they were meant for."""

import asyncio

import aiohttp
import pytest

from tests.support.waiting import LIMIT

from . import (
    AbuseLimited,
    BadContentRange,
    Delay,
    Disconnect,
    ExpiredUrl,
    FakeHub,
    ForeignRealm,
    HeadWithoutDigest,
    HeadWithoutLength,
    HugeHeaders,
    IgnoreRange,
    NoHeaders,
    RateLimited,
    Redirect,
    RedirectLoop,
    Rule,
    Status,
)
from .clients import BLOB, DATA, BlobClient, blob_client
from .plugin import hub

__all__ = ["blob_client", "hub"]


async def test_one_time_faults_follow_each_other(hub: FakeHub, blob_client: BlobClient) -> None:
    """One-time faults happen one per request in the order given, then all is well."""
    hub.script(Rule(kind="blob"), RateLimited(retry_after=3))
    hub.script(Rule(kind="cdn"), AbuseLimited())
    hub.script(Rule(kind="blob", host="registry"), Status(500, {"X-A": "b"}, b"oops", "text/plain"))
    async with blob_client.ask() as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
        assert (await answer.json())["errors"][0]["code"] == "TOOMANYREQUESTS"
    async with blob_client.ask() as answer:
        assert (answer.status, answer.headers["X-A"], await answer.text()) == (500, "b", "oops")
    async with blob_client.ask() as answer:
        assert (answer.status, answer.content_type) == (429, "text/plain")
        assert "HAP429" in await answer.text()
    assert await blob_client.read() == DATA


async def test_rules_match_what_they_name(hub: FakeHub, blob_client: BlobClient) -> None:
    """A rule leaves other requests alone, and the first ones when told to skip."""
    for other in (
        Rule(kind="manifest"),
        Rule(method="HEAD"),
        Rule(repository="library/other"),
        Rule(reference="sha256:0"),
        Rule(host="token"),
        Rule(range=True),
        Rule(range="bytes=0-"),
    ):
        hub.script(other, Status(500))
    skipping = hub.script(Rule(kind="cdn", range=False, skip=1), Status(502))
    assert await blob_client.read() == DATA
    async with blob_client.ask() as answer:
        assert (answer.status, skipping.used) == (502, 1)
    assert await blob_client.read() == DATA


@pytest.mark.parametrize("reset", [False, True])
async def test_no_answer(hub: FakeHub, blob_client: BlobClient, reset: bool) -> None:
    """A request may stay unanswered, come late, or be answered with the end of the connection."""
    silent = NoHeaders()
    hub.script(Rule(kind="cdn"), silent)
    hub.script(Rule(kind="cdn"), Delay(0.05))
    hub.script(Rule(kind="cdn"), Disconnect(reset))
    asking = asyncio.create_task(blob_client.read())
    async with asyncio.timeout(LIMIT):
        await silent.reached.wait()
    assert not asking.done()
    silent.release()
    assert await asking == DATA
    before = asyncio.get_running_loop().time()
    assert await blob_client.read() == DATA
    assert asyncio.get_running_loop().time() - before >= 0.05
    # aiohttp itself asks once more when a kept connection was closed on it.
    hub.script(Rule(kind="cdn"), Disconnect(reset))
    with pytest.raises(aiohttp.ClientConnectionError):
        await blob_client.read()


async def test_ranges_that_go_wrong(hub: FakeHub, blob_client: BlobClient) -> None:
    """A range may be ignored or be another one than asked for."""
    hub.script(Rule(kind="blob"), IgnoreRange())
    hub.script(Rule(kind="blob"), BadContentRange())
    async with blob_client.ask(Range="bytes=5-9") as answer:
        assert (answer.status, await answer.read()) == (200, DATA)
    async with blob_client.ask(Range="bytes=5-9") as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes 6-10/{len(DATA)}")
    assert await blob_client.read(Range="bytes=5-9") == DATA[5:10]


async def test_headers_that_go_wrong(hub: FakeHub, blob_client: BlobClient) -> None:
    """Headers may be missing or too large."""
    hub.script(Rule(kind="blob"), HeadWithoutLength())
    hub.script(Rule(kind="blob"), HeadWithoutDigest())
    hub.script(Rule(kind="cdn"), HugeHeaders())
    async with blob_client.ask("HEAD") as answer:
        assert "Content-Length" not in answer.headers
    async with blob_client.ask("HEAD") as answer:
        assert "Docker-Content-Digest" not in answer.headers
    with pytest.raises(aiohttp.ClientResponseError):
        await blob_client.read()


async def test_redirects_that_go_wrong(hub: FakeHub, blob_client: BlobClient) -> None:
    """Redirects may lead elsewhere, in circles, or to an address that has expired."""
    hub.script(Rule(kind="blob"), Redirect("http://127.0.0.9:1/x"))
    with pytest.raises(aiohttp.ClientConnectorError):
        await blob_client.read()
    hub.script(Rule(kind="blob"), ExpiredUrl())
    async with blob_client.ask() as answer:
        assert (answer.status, answer.content_type) == (403, "application/xml")
    hub.script(BLOB, RedirectLoop())
    with pytest.raises(aiohttp.TooManyRedirects):
        await blob_client.read()


async def test_a_foreign_realm(hub: FakeHub, blob_client: BlobClient) -> None:
    """A challenge may name a foreign token address; other faults leave challenges alone."""
    hub.auth = "bearer"
    hub.script(Rule(), Status(500))
    hub.script(Rule(), ForeignRealm("http://127.0.0.9/token"))
    async with blob_client.ask() as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"][:37]) == (
            401,
            'Bearer realm="http://127.0.0.9/token"',
        )
