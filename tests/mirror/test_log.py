"""What one event is in the log: one line, at the level of what it means, however many clients it concerns."""

import asyncio
import os

from tests.fakehub import Corrupt, Rule, Status
from tests.support.names import APP, TAG, blob_path
from tests.support.wire import ask

CLIENTS = 8


def lines(log, *events):
    """The levels of the lines of some events, which people see at the default level."""
    return [line["log_level"] for line in log if line["event"] in events and line["log_level"] != "debug"]


async def test_one_failed_check_is_one_line(hub, mirror, log, all_in):
    """Clients that wait for the same answer of upstream do not each log that it failed."""
    gate = hub.gate(Rule(kind="manifest"))
    hub.script(Rule(kind="manifest", times=None), Status(503))
    asking = [asyncio.create_task(mirror.get(TAG)) for _ in range(CLIENTS)]
    await all_in(CLIENTS)
    gate.release()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {503}
    assert lines(log, "request_refused") == ["warning"]


async def test_one_failed_download_is_one_line(hub, mirror, log, all_in):
    """The readers of a download that fails do not each log that."""
    layer = hub.add_image(APP, "1", layers=[os.urandom(300_000)]).layers[0]
    await mirror.get(TAG)
    hub.script(Rule(kind="blob", times=None), Corrupt(at=10))
    gate = hub.gate(Rule(kind="blob", times=1), after=100_000)
    asking = [asyncio.create_task(mirror.get(blob_path(layer))) for _ in range(CLIENTS)]
    await all_in(CLIENTS)
    gate.release()
    await asyncio.gather(*asking, return_exceptions=True)
    await mirror.idle()
    # A wrong digest is fetched once more.
    assert 1 <= len(lines(log, "download_failed")) <= 2
    assert lines(log, "body_ended_short", "request_refused") == []


async def test_handshake_on_the_plain_port(mirror, log):
    """A client that speaks TLS to a plain port, as Docker does to find out, is nothing that operators have to mend."""
    hello = bytes.fromhex("16030100c8010000c40303") + os.urandom(190)
    await ask(mirror.port, hello)
    malformed = [line for line in log if line["event"] == "request_malformed"]
    assert [line["log_level"] for line in malformed] == ["debug"]
    assert "TLS" in malformed[0]["cause"]
