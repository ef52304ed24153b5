"""The port as systemd passes it: open before the mirror starts, and after it has stopped."""

import asyncio
import signal
import socket
import sys

import pytest
import yaml

from mirror.errors import ConfigurationError
from mirror.listener.passed_sockets import PassedSockets
from mirror.service import run
from tests.support.ports import free_port
from tests.support.waiting import LIMIT

# What systemd does between fork and exec (sd_listen_fds(3)).
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="registry-mirror.socket")
os.execv(sys.executable, [sys.executable, "-m", "mirror", "serve", "--config", sys.argv[2]])
"""


async def start(sock, file):
    argv = [sys.executable, "-c", LAUNCHER, str(sock.fileno()), str(file)]
    return await asyncio.create_subprocess_exec(*argv, pass_fds=[sock.fileno()], stderr=asyncio.subprocess.PIPE)


async def ended(process):
    """Its exit status and its log."""
    async with asyncio.timeout(LIMIT):
        _, log = await process.communicate()
    return process.returncode, log.decode()


async def ask(port):
    """Connect, and send a request: it waits in the socket for somebody to accept it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return reader, writer


async def status(connection):
    reader, writer = connection
    async with asyncio.timeout(LIMIT):
        line = await reader.readline()
        await reader.read()
    writer.close()
    return line


@pytest.mark.parametrize(("workers", "starts"), [(1, 2), (2, 1)])
async def test_clients_wait_for_the_mirror(tmp_path, workers, starts):
    """Those that come before it starts, and while it is restarted, are answered and not refused."""
    file = tmp_path / "mirror.yaml"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        settings = {"listen": f"127.0.0.1:{port}", "admin": {"listen": f"127.0.0.1:{free_port()}"}, "workers": workers}
        file.write_text(yaml.safe_dump({**settings, "storage": {"path": str(tmp_path / "store"), "min_free": "0"}}))
        for _ in range(starts):
            early = await ask(port)
            process = await start(sock, file)
            try:
                assert await status(early) == b"HTTP/1.1 200 OK\r\n"
                process.send_signal(signal.SIGTERM)
                exited, log = await ended(process)
            finally:
                if process.returncode is None:
                    process.kill()
            assert exited == 0, log


def test_socket_of_another_address(tmp_path, monkeypatch):
    """The mirror names it and does not start: clients of that port would wait for ever. No store is made."""
    file = tmp_path / "mirror.yaml"
    settings = {"listen": f"127.0.0.1:{free_port()}", "admin": {"listen": f"127.0.0.1:{free_port()}"}}
    file.write_text(yaml.safe_dump({**settings, "storage": {"path": str(tmp_path / "store")}}))
    sock = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(run, "inherited", lambda: PassedSockets([sock]))
    with pytest.raises(ConfigurationError, match=f"a socket at 127.0.0.1:{sock.getsockname()[1]}"):
        run.run(file)
    assert sock.fileno() == -1
    assert not (tmp_path / "store").exists()
