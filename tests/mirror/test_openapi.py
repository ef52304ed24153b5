"""The description of the admin API: it names every route, real answers are as it says, and whatever is asked, nothing fails."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.fakehub import Rule, Status
from tests.mirror.holding import registries
from tests.mirror.syncing import Orders, pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, tag_name
from tests.support.waiting import LIMIT, eventually
from tests.transfer.bundles import Image, contents, layout, named

FROZEN_TAG = {"match": f"{APP}:frozen", "freeze": True}
ROOT = Path(__file__).parents[2]
# What is described is the API; the pages are for people.
API = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/api/", "/webhooks/")


async def described(mirror):
    """The description, as it is served."""
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/openapi.json") as answer:
        assert answer.status == 200
        return await answer.json()


async def ask(mirror, path, method="GET", *, tar=None, **body):
    url = f"http://127.0.0.1:{mirror.admin_port}{path}"
    content = {"json": body or None} if tar is None else {"data": tar, "headers": {"Content-Type": "application/x-tar"}}
    async with mirror.session.request(method, url, **content) as answer:
        return answer.status, await answer.json()


class Described:
    """Asks a mirror, and compares each answer with the description."""

    def __init__(self, mirror, document):
        self._mirror = mirror
        self._document = document
        self.seen = set()

    async def ask(self, path, method="GET", *, template=None, **body):
        status, answer = await ask(self._mirror, path, method, **body)
        template = template or path.partition("?")[0]
        operation = self._document["paths"][template][method.lower()]
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": self._document["components"]}).validate(answer)
        self.seen.add((template, method))
        return status, answer


async def test_every_route_is_described(mirror):
    """The description and the router have the same paths and methods."""
    document = await described(mirror)
    routes = {
        (route.resource.canonical, "post" if route.method == "*" else route.method.lower())
        for route in mirror.admin_routes
        if route.method != "HEAD" and route.resource.canonical.startswith(API)
    }
    assert {(path, method) for path, methods in document["paths"].items() for method in methods} == routes
    assert document["openapi"] == "3.1.0"
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


async def check_exports(mirror, check):
    """Export an image; compare what is told of that with the description."""
    path = "/api/v1/export"
    assert await check.ask(path) == (200, {"exports": []})
    async with mirror.session.post(f"http://127.0.0.1:{mirror.admin_port}{path}", json={"images": ["app:1"]}) as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-tar")
        await answer.read()
        name = answer.headers["X-Request-Id"]

    async def state():
        return (await check.ask(f"{path}/{name}", template=path + "/{name}"))[1]

    await eventually(state, "the end of the export", holds=lambda found: found["phase"] == "ended")
    await check.ask(path)


async def test_real_answers(hub, tmp_path):
    """Answers in every state that the mirror can be in are as described: empty, busy, failing, and with results of all kinds."""
    hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64"])
    hub.add_image(APP, "frozen")
    settings = {"sync": {"interval": "1h", "images": ["app:1", "app:none"]}, "registries": registries(hub, FROZEN_TAG)}
    async with MirrorUnderTest(hub, tmp_path / "store", **settings) as mirror:
        check = Described(mirror, await described(mirror))
        orders = Orders(mirror)
        for path in ("/readyz", "/api/v1/status", "/api/v1/images", "/api/v1/downloads", "/api/v1/sync"):
            await check.ask(path)
        await check.ask("/api/v1/explain?image=app:1")
        image = hub.add_image(APP, "2", layers=[os.urandom(3_000_000)])
        await pull(mirror, APP, "1")
        await mirror.get(f"/v2/{APP}/manifests/frozen")
        await mirror.get(f"/v2/{APP}/manifests/none")
        hub.script(Rule(reference="broken", times=None), Status(503))
        await mirror.get(f"/v2/{APP}/manifests/broken")
        gate = hub.gate(Rule(kind="cdn", reference=image.layers[0].digest, times=None), after=1_000_000)
        _, first = await check.ask("/api/v1/warm", "POST", images=["app:2"])
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        _, second = await check.ask("/api/v1/warm", "POST", images=["app:3"], platforms=["linux/arm64"])
        await orders.until(lambda state: state["running"] and state["running"][0]["images"] and state["waiting"])
        reading = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}"))
        await eventually(lambda: mirror.download(image.layers[0].digest).readers == 2, "a client")
        for path in ("/readyz", "/api/v1/status", "/api/v1/images", "/api/v1/downloads", "/api/v1/sync", "/api/v1/sync?n=1"):
            await check.ask(path)
        await check.ask("/api/v1/search?q=app")
        for reference in (":1", ":2", ":none", ":broken", f"@{image.digest}"):
            await check.ask(f"/api/v1/explain?image=app{reference}")
        for order in (first, second):
            await check.ask(f"/api/v1/sync/{order['order']}", template="/api/v1/sync/{order}")
        status, _ = await check.ask(f"/api/v1/sync/{second['order']}", "DELETE", template="/api/v1/sync/{order}")
        assert status == 200
        gate.release()
        assert (await reading).status == 200
        await orders.ended(first["order"])
        for status, path in ((409, second["order"]), (404, "none")):
            assert (await check.ask(f"/api/v1/sync/{path}", "DELETE", template="/api/v1/sync/{order}"))[0] == status
        await check_exports(mirror, check)
        await check.ask("/api/v1/sync", "POST")
        hub.add_image(APP, "frozen", layers=[b"moved"])
        mirror.store.index.tags.expire(*tag_name("frozen"), time.time())
        mirror.store.generation.change()
        await mirror.get(f"/v2/{APP}/manifests/frozen")
        for path in ("/api/v1/status", "/api/v1/explain?image=app:frozen"):
            await check.ask(path)
        assert (await check.ask("/api/v1/release", "POST", images=["app:frozen"]))[0] == 200
        assert (await check.ask("/api/v1/release", "POST", images=["app:none"]))[0] == 404
        await check.ask("/api/v1/purge", "POST", match="app:*", dry_run=True)
        await check.ask("/api/v1/images/library/app:1", "DELETE", template="/api/v1/images/{name}")
        assert (await check.ask("/api/v1/purge", "POST", match="a b"))[0] == 400
        for path in ("/api/v1/status", "/api/v1/images", "/api/v1/explain?image=app:1", "/api/v1/sync"):
            await check.ask(path)
        imported = layout([named(Image(b"one"), "docker.io/library/app:in"), Image(b"two").descriptor()], contents(Image(b"one")))
        for tar, status in ((imported, 200), (b"no tar", 400)):
            assert (await check.ask("/api/v1/import", "POST", tar=tar))[0] == status
        assert (await check.ask("/api/v1/nodes"))[0] == 409
        await check.ask("/openapi.json")
        operations = {(path, method.upper()) for path, methods in check._document["paths"].items() for method in methods}
        unseen = {("/healthz", "GET"), ("/metrics", "GET"), ("/webhooks/dockerhub/{secret}", "POST"), ("/api/v1/export", "POST")}
        assert operations - check.seen == unseen


async def test_token(hub, tmp_path):
    """With a token every operation that is not open is refused without it, as described; the open ones are not."""
    (tmp_path / "token").write_text("secret")
    admin = {"listen": "127.0.0.1:0", "token_file": str(tmp_path / "token")}
    async with MirrorUnderTest(hub, tmp_path / "store", admin=admin) as mirror:
        assert (await ask(mirror, "/openapi.json"))[0] == 401
        mirror.session.headers["Authorization"] = "Bearer secret"
        document = await described(mirror)
        del mirror.session.headers["Authorization"]
        for template, methods in document["paths"].items():
            for method, operation in methods.items():
                path = template.replace("{name}", "app:1").replace("{order}", "none").replace("{secret}", "wrong")
                url = f"http://127.0.0.1:{mirror.admin_port}{path}"
                async with mirror.session.request(method, url, json={} if method == "post" else None) as answer:
                    assert (answer.status == 401) == bool(operation["security"]), (method, path)
                    assert str(answer.status) in operation["responses"], (method, path)


FULL = [pytest.mark.full, pytest.mark.timeout(900)]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize(
    ("phases", "examples"), [("coverage,fuzzing", 3), pytest.param("examples,coverage,fuzzing,stateful", 50, marks=FULL)]
)
async def test_whatever_is_asked(hub, mirror, tmp_path, phases, examples):
    """Requests that schemathesis makes up from the description: none fails, and each answer is described."""
    # One request at a time: an export whose content is purged meanwhile is 503. It asks for the image of the examples.
    hub.add_image("library/nginx", "1.27")
    await pull(mirror, "library/nginx", "1.27")
    description = f"http://127.0.0.1:{mirror.admin_port}/openapi.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", description, "--seed", "1", "--no-color", "--phases", phases),
        *("--checks", CHECKS, "--max-examples", str(examples), "--request-timeout", "30", "--workers", "1"),
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, out
