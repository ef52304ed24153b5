"""Each answer of the registry address has the identifier of its request, and so has what is logged about it."""

import json
import logging

import pytest
import structlog

from mirror.config.sections import Log
from mirror.service import logs
from tests.support.names import APP
from tests.support.wire import Wire, ask


@pytest.fixture
def lines(capsys):
    """Returns the lines logged so far, as JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(Log(format="json", level="debug"))
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level


async def test_malformed_request_has_an_id(mirror):
    """Two malformed requests have two identifiers, although their headers cannot be read."""
    ids = {(await ask(mirror.port, b"GET /v2/ HTTP/1.1\r\nHost x\r\n\r\n")).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert "-" not in ids


async def test_refusal_is_logged_with_its_own_id(hub, mirror, lines):
    """A request that is refused at the door is not logged under the identifier of the one before on the same connection."""
    hub.add_image(APP, "1")
    async with Wire(mirror.port) as wire:
        await wire.send(f"GET /v2/{APP}/manifests/2 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: first\r\n\r\n".encode())
        assert (await wire.reply()).status == 404
        await wire.send(f"GET /v2/{APP}/manifests/1 HTTP/1.1\r\nHost: evil.example\r\nX-Request-Id: second\r\n\r\n".encode())
        assert (await wire.reply()).status == 403
    logged = {line["event"]: line.get("request") for line in lines() if line["event"] in ("request_refused", "client_refused")}
    assert logged == {"request_refused": "first", "client_refused": "second"}
