"""A node of a cluster whose Redis does not answer is a mirror by itself; its address for other nodes serves what it has."""

import asyncio
import contextlib
import os
import time

import pytest

from mirror.core.hmac_token import SignedRequest, sign
from tests.fakehub import Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.ports import free_port
from tests.support.waiting import eventually

SECRET = "a secret of forty characters, more or less"


class Node(MirrorUnderTest):
    """A node that is alone; asks its address for other nodes as another node does."""

    def __init__(self, hub, directory):
        (directory / "secret").write_text(SECRET)
        self.node_port = free_port()
        super().__init__(
            hub,
            directory / "store",
            cluster={
                "redis": {"url": f"redis://127.0.0.1:{free_port()}/0"},
                "listen": f"127.0.0.1:{self.node_port}",
                "secret_file": str(directory / "secret"),
            },
        )

    @property
    def name(self):
        return f"http://127.0.0.1:{self.node_port}"

    def token(self, path, wanted="", receiver=None):
        request = SignedRequest("GET", path, wanted, receiver or self.name)
        return sign(SECRET.encode(), request, time.time(), os.urandom(16).hex())

    async def ask(self, digest, wanted="bytes=0-", token=None):
        """Status, headers and body of an answer to another node."""
        path = f"/v2/docker.io/{APP}/blobs/{digest}?urgency=CLIENT"
        headers = {"Range": wanted, "Authorization": token or self.token(path, wanted)}
        async with self.session.get(self.name + path, headers=headers) as response:
            return response.status, response.headers, await response.read()


@pytest.fixture
async def node(hub, tmp_path):
    async with Node(hub, tmp_path) as under_test:
        yield under_test


def blob_path(digest):
    return f"/v2/{APP}/blobs/{digest}"


async def test_pulls_are_those_of_a_mirror(hub, node):
    """By tag, by digest and of blobs; and it is ready."""
    image = hub.add_image(APP, "1")
    assert (await node.get(f"/v2/{APP}/manifests/1")).cache == "MISS"
    answer = await node.get(blob_path(image.layers[0].digest))
    assert (answer.status, answer.sha256) == (200, image.layers[0].digest)
    await node.idle()
    assert (await node.get(blob_path(image.layers[0].digest))).cache == "HIT"
    assert hub.count(method="GET", kind="manifest", status=200) == 1
    assert await node.metric("cluster_alone") == 1
    assert await node.metric("cluster_nodes") == 0
    async with node.session.get(f"http://127.0.0.1:{node.admin_port}/readyz") as ready:
        assert ready.status == 200
        assert (await ready.json())["cluster"] == {"redis": "alone", "nodes": 0}
    async with node.session.get(f"http://127.0.0.1:{node.admin_port}/api/v1/nodes") as nodes:
        assert (await nodes.json())["redis"] == "alone"


async def test_refusal_of_upstream_is_the_answer(hub, node):
    assert (await node.get(f"/v2/{APP}/manifests/absent")).status == 404
    assert (await node.get(blob_path("sha256:" + "0" * 64))).status == 404


async def test_other_nodes_get_what_is_held(hub, node):
    image = hub.add_image(APP, "1")
    layer = image.layers[0]
    await node.get(f"/v2/{APP}/manifests/1")
    body = (await node.get(blob_path(layer.digest))).body
    status, headers, sent = await node.ask(layer.digest)
    assert (status, sent, headers["Content-Range"]) == (206, body, f"bytes 0-{len(body) - 1}/{len(body)}")
    assert (await node.ask(layer.digest, "bytes=5-8"))[2] == body[5:9]


async def test_no_fetch_is_started_for_other_nodes(hub, node):
    blob = hub.add_synthetic_blob(APP, 1000)
    hub.add_image(APP, "1", [blob])
    assert (await node.ask(blob.digest))[0] == 404
    assert hub.count(kind="blob") == 0


async def test_other_nodes_get_what_arrives(hub, node):
    """While upstream sends it, and from any byte; before its first byte the node says that it waits."""
    blob = hub.add_synthetic_blob(APP, 4 << 20)
    hub.add_image(APP, "1", [blob])
    gate, opened = hub.gate(Rule(kind="cdn")), hub.gate(Rule(kind="cdn"), after=2 << 20)
    async with contextlib.AsyncExitStack() as stack:
        request = node.session.get(node.url(blob_path(blob.digest)))
        pull = asyncio.create_task(stack.enter_async_context(request))
        await eventually(lambda: len(node.downloads))
        status, headers, _ = await node.ask(blob.digest)
        assert (status, headers.get("X-Mirror-Wait")) == (503, "1")
        gate.release()
        opened.release()
        response = await pull
        status, _, sent = await node.ask(blob.digest, f"bytes={1 << 20}-")
        assert (status, sent) == (206, (await response.read())[1 << 20 :])
    assert hub.bytes_sent(blob.digest) <= (4 << 20) + 1000


@pytest.mark.parametrize("token", ["", "Bearer x", "other node", "other path"])
async def test_unsigned_requests_are_refused(token, hub, node):
    image = hub.add_image(APP, "1")
    digest = image.layers[0].digest
    await node.get(f"/v2/{APP}/manifests/1")
    await node.get(blob_path(digest))
    path = f"/v2/docker.io/{APP}/blobs/{digest}?urgency=CLIENT"
    tokens = {
        "other node": node.token(path, "bytes=0-", "http://127.0.0.1:1"),
        "other path": node.token(path + "&more=1", "bytes=0-"),
    }
    status, headers, body = await node.ask(digest, token=tokens.get(token, token or "none"))
    assert status == 401
    assert "X-Cache" not in headers
    assert SECRET.encode() not in body


async def test_token_counts_once(hub, node):
    image = hub.add_image(APP, "1")
    digest = image.layers[0].digest
    await node.get(f"/v2/{APP}/manifests/1")
    await node.get(blob_path(digest))
    token = node.token(f"/v2/docker.io/{APP}/blobs/{digest}?urgency=CLIENT", "bytes=0-")
    assert (await node.ask(digest, token=token))[0] == 206
    assert (await node.ask(digest, token=token))[0] == 401


@pytest.mark.parametrize("path", ["/", "/v2/", f"/v2/{APP}/manifests/1", "/metrics", "/v2/_catalog", "/v2/x/blobs/nonsense"])
async def test_nothing_else_is_served(path, node):
    headers = {"Authorization": node.token(path)}
    async with node.session.get(node.name + path, headers=headers) as response:
        assert response.status == 404


async def test_failing_upstream_is_not_hidden(hub, node):
    """A node whose fetch has failed has nothing for the others."""
    blob = hub.add_synthetic_blob(APP, 1000)
    hub.add_image(APP, "1", [blob])
    hub.script(Rule(kind="blob", times=None), Status(503))
    assert (await node.get(blob_path(blob.digest))).status == 503
    await node.idle()
    assert (await node.ask(blob.digest))[0] == 404
