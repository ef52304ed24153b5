"""Plain clients for the tests of the fake itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from yarl import URL

from . import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, FakeHub, Rule

DATA = bytes(range(256)) * 1000
REPOSITORY = "library/nginx"
ALL = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_MANIFEST}"}
BLOB = Rule(kind="blob", times=None)


class BlobClient:
    """Asks for one blob, and whatever it is redirected to."""

    def __init__(self, session: aiohttp.ClientSession, hub: FakeHub) -> None:
        self.session = session
        self.digest = hub.add_blob(REPOSITORY, DATA)
        self.url = f"{hub.url}/v2/{REPOSITORY}/blobs/{self.digest}"

    @asynccontextmanager
    async def ask(self, method: str = "GET", **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
        # A client that quotes a redirect anew would break the signature: `requote_redirect_url` is off.
        async with self.session.request(method, self.url, headers=headers, allow_redirects=True) as answer:
            yield answer

    async def read(self, **headers: str) -> bytes:
        async with self.ask(**headers) as answer:
            return await answer.read()


@pytest.fixture
async def blob_client(hub: FakeHub) -> AsyncIterator[BlobClient]:
    hub.auth = "none"
    async with aiohttp.ClientSession(requote_redirect_url=False) as session:
        yield BlobClient(session, hub)


class Client:
    """A registry client without any cleverness."""

    def __init__(self, session: aiohttp.ClientSession, hub: FakeHub) -> None:
        self.session = session
        self.hub = hub

    async def token(self, repository: str = REPOSITORY, user: str | None = None, password: str = "") -> str:
        headers = {"Authorization": aiohttp.encode_basic_auth(user, password)} if user else {}
        query = {"service": "registry.docker.io", "scope": f"repository:{repository}:pull"}
        url = f"http://{self.hub.token_host}/token"
        async with self.session.get(url, params=query, headers=headers) as answer:
            assert answer.status == 200
            return str((await answer.json())["token"])

    @asynccontextmanager
    async def ask(
        self, path: str, token: str | None = None, method: str = "GET", **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = ALL | {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        url = URL(path if path.startswith("http") else self.hub.url + path, encoded=True)
        async with self.session.request(method, url, headers=sent, allow_redirects=False) as answer:
            yield answer

    async def location(self, digest: str) -> str:
        async with self.ask(f"/v2/{REPOSITORY}/blobs/{digest}", await self.token()) as answer:
            assert answer.status == 307
            return answer.headers["Location"]


@pytest.fixture
async def client(hub: FakeHub) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Client(session, hub)
