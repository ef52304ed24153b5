"""The command line, signals, and a mirror that is killed."""

import asyncio
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from tests.fakehub import Rule, Status
from tests.support.names import APP, TAG
from tests.support.ports import free_port
from tests.support.processes import Process, Served
from tests.support.waiting import LIMIT, eventually


async def refused(*arguments, directory, environment=None):
    """Run a command that has to end with exit status 2 and one line, which is returned."""
    async with Process(*arguments, directory=directory, environment=environment) as process:
        assert await process.ended() == 2
    (line,) = process.log.splitlines()
    return line.removeprefix("registry-mirror: ")


@pytest.mark.parametrize("command", [("check-config",), ("serve", "--config")])
async def test_bad_configuration(tmp_path, command):
    """A wrong configuration ends the command with status 2 and a line that names the key."""
    file = tmp_path / "x.yaml"
    file.write_text("tags: {ttl: soon}")
    assert (await refused(*command, str(file), directory=tmp_path)).startswith("tags.ttl: ")
    line = await refused(*command, str(tmp_path / "none.yaml"), directory=tmp_path)
    assert line == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


async def test_good_configuration(tmp_path):
    """A right configuration, and none, are fine."""
    file = tmp_path / "x.yaml"
    file.write_text("tags: {ttl: 1m}")
    for arguments in (("check-config", str(file)), ("check-config",)):
        async with Process(*arguments, directory=tmp_path) as process:
            assert await process.ended() == 0
            assert process.log == ""


async def test_port_in_use(hub, tmp_path):
    """A port that somebody else has is named, and so is its key."""
    port = hub.url.rpartition(":")[2]
    environment = {"MIRROR__LISTEN": f"127.0.0.1:{port}"}
    line = await refused("serve", directory=tmp_path, environment=environment)
    assert line == f"listen: cannot listen on 127.0.0.1:{port}: Address already in use"
    environment = {"MIRROR__LISTEN": f"127.0.0.1:{free_port()}", "MIRROR__ADMIN__LISTEN": f"127.0.0.1:{port}"}
    assert (await refused("serve", directory=tmp_path, environment=environment)).startswith("admin.listen: ")


@pytest.mark.parametrize("kind", ["file", "layout", "read-only"])
async def test_unusable_store(tmp_path, kind):
    """A store that cannot be used ends the start with its key and its path."""
    store = tmp_path / "store"
    if kind == "file":
        store.write_text("x")
    elif kind == "layout":
        store.mkdir()
        (store / "LAYOUT").write_text("registry-mirror store, layout 99\n")
    else:
        # Nothing can be created there, not even by root.
        store = "/proc/store"
    ports = {f"MIRROR__{key}LISTEN": f"127.0.0.1:{free_port()}" for key in ("", "ADMIN__")}
    line = await refused("serve", directory=tmp_path, environment={"MIRROR__STORAGE__PATH": str(store), **ports})
    assert line.startswith("storage.path: ")
    assert str(store) in line


async def test_start_without_upstream(hub, tmp_path):
    """A mirror starts while upstream is down, and is there for it when it comes."""
    await hub.stop()
    async with Served(hub, tmp_path) as mirror:
        assert (await mirror.get("/v2/"))[0] == 200
        assert (await mirror.get(TAG))[0] == 503
        assert (await mirror.ready())[0] == 200
        image = hub.add_image(APP, "1")
        await hub.start()
        # It looks for upstream once a second.
        answer = await eventually(lambda: mirror.get(TAG), holds=lambda answer: answer[0] != 503)
        assert answer == (200, "MISS", image.raw)


async def test_limit_of_open_files(hub, tmp_path):
    """The mirror takes all the open files that it may have: each client of a blob needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Inherited by the process.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        async with Served(hub, tmp_path) as mirror:
            limits = Path(f"/proc/{mirror.process.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, hard = re.search(r"^Max open files\s+(\d+)\s+(\d+)", limits, re.MULTILINE).groups()
    assert soft == hard


async def test_reload(hub, tmp_path):
    """SIGHUP: a right configuration counts from now on, a wrong one is refused and changes nothing, nobody is disturbed."""
    hub.add_image(APP, "1")
    blob = hub.add_synthetic_blob(APP, 3_000_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=1_000_000)
    async with Served(hub, tmp_path) as mirror:
        assert (await mirror.get(TAG))[1] == "MISS"
        pulling = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{blob.digest}"))
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        mirror.write(tags={"ttl": "soon"})
        mirror.signal(signal.SIGHUP)
        await mirror.logged("configuration_refused")
        assert (await mirror.get(TAG))[1] == "HIT"
        mirror.write(tags={"ttl": "0s"}, storage={"path": str(tmp_path / "elsewhere")})
        mirror.signal(signal.SIGHUP)
        await mirror.logged("configuration_reloaded")
        assert (await mirror.get(TAG))[1] == "REVALIDATED"
        gate.release()
        assert await pulling == (200, "MISS", blob.data)
    reloaded = next(event for event in mirror.events() if event["event"] == "configuration_reloaded")
    assert reloaded["needs_restart"] == ["storage"]
    refusal = next(event for event in mirror.events() if event["event"] == "configuration_refused")
    assert refusal["problems"][0].startswith("tags.ttl: ")


async def test_reload_between_two_attempts(hub, tmp_path):
    """A reload while a download waits for its next attempt does not end the download."""
    blob = hub.add_synthetic_blob(APP, 500_000)
    hub.script(Rule(kind="blob", host="registry"), Status(503))
    async with Served(hub, tmp_path) as mirror:
        pulling = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{blob.digest}"))
        await hub.wait_for(kind="blob", status=503)
        mirror.signal(signal.SIGHUP)
        assert await pulling == (200, "MISS", blob.data)
        await mirror.logged("configuration_reloaded")
        mirror.signal()
        assert await mirror.ended() == 0
    assert "Traceback" not in mirror.log
    assert "Unclosed" not in mirror.log


async def slow_read(mirror, blob, paused, resume):
    """Read a blob over a connection that stops in the middle until told to go on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port, limit=1 << 16)
    writer.write(f"GET /v2/{APP}/blobs/{blob.digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    got = await reader.readexactly(100_000)
    paused.set()
    await resume.wait()
    got += await reader.read()
    writer.close()
    return got


async def test_sigterm_drains(hub, tmp_path):
    """SIGTERM: no new connections, a slow client still gets its blob whole, and the exit status is 0."""
    blob = hub.add_synthetic_blob(APP, 20_000_000)
    paused, resume = asyncio.Event(), asyncio.Event()
    async with Served(hub, tmp_path) as mirror:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        reading = asyncio.create_task(slow_read(mirror, blob, paused, resume))
        await asyncio.wait_for(paused.wait(), LIMIT)
        mirror.signal()
        await mirror.logged('"draining"')
        status, body = await mirror.ready()
        assert (status, body["ready"], body["draining"]) == (503, False, True)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", mirror.port)
        resume.set()
        assert await asyncio.wait_for(reading, LIMIT) == blob.data
        assert await mirror.ended() == 0
    assert "Traceback" not in mirror.log


async def test_sigterm_twice(hub, tmp_path):
    """A second SIGTERM does not wait for clients any more."""
    blob = hub.add_synthetic_blob(APP, 20_000_000)
    paused, resume = asyncio.Event(), asyncio.Event()
    async with Served(hub, tmp_path) as mirror:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        reading = asyncio.create_task(slow_read(mirror, blob, paused, resume))
        await asyncio.wait_for(paused.wait(), LIMIT)
        mirror.signal()
        await mirror.logged('"draining"')
        mirror.signal()
        async with asyncio.timeout(LIMIT):
            assert await mirror.ended() == 0
        resume.set()
        await asyncio.gather(reading, return_exceptions=True)
    assert "Traceback" not in mirror.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_partials_survive(hub, tmp_path, number):
    """What had arrived of a blob when the mirror ended, in order or not, is not fetched again."""
    blob = hub.add_synthetic_blob(APP, 30_000_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=20_000_000)
    path = f"/v2/{APP}/blobs/{blob.digest}"
    async with Served(hub, tmp_path) as mirror:
        response = await mirror.session.get(mirror.url(path))
        await response.content.readexactly(19_000_000)
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        response.close()
        mirror.signal(number)
        assert await mirror.ended() == (0 if number == signal.SIGTERM else -number)
        assert "Traceback" not in mirror.log
    partials = [file for file in (tmp_path / "store" / "partial").rglob("*") if file.is_file()]
    assert partials
    gate.release()
    hub.reset_counters()
    async with Served(hub, tmp_path) as mirror:
        assert (await mirror.get(path))[2] == blob.data
    assert hub.bytes_sent(blob.digest) < 12_000_000


async def test_kill_in_the_middle_of_everything(hub, tmp_path):
    """A mirror killed under load starts again over its store, and serves only right bytes."""
    image = hub.add_image(APP, "1", layers=[os.urandom(200_000) for _ in range(20)])
    async with Served(hub, tmp_path) as mirror:
        paths = [TAG, *(f"/v2/{APP}/blobs/{blob.digest}" for blob in [image.config, *image.layers])]
        pulling = [asyncio.create_task(mirror.get(path)) for path in paths]
        await asyncio.wait(pulling, return_when=asyncio.FIRST_COMPLETED)
        mirror.signal(signal.SIGKILL)
        await mirror.ended()
        await asyncio.gather(*pulling, return_exceptions=True)
    async with Served(hub, tmp_path) as mirror:
        assert (await mirror.get(TAG))[2] == image.raw
        for blob in [image.config, *image.layers]:
            assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}"))[2] == blob.data
        mirror.signal()
        assert await mirror.ended() == 0
    assert "Traceback" not in mirror.log
