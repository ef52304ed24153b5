"""A long line to an upstream: what it makes of packets, and that nothing of it is left behind."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.clients import get
from bench.content import Content
from bench.line import WAITING, Line, far_origin, means, own_network
from bench.relay import Direction

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 30.0
HOLD = """
import signal, sys, time
from pathlib import Path
from bench.line import Line, far_origin
# A shell that starts the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with far_origin(Path(sys.argv[1]), Path(sys.argv[1]), Line(0.01)) as origin:
    print(origin.host, origin.child.pid, flush=True)
    time.sleep(600)
"""

APART = """
import socket, sys
from bench.line import open_loopback
open_loopback()
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    socket.create_connection(server.getsockname(), 10).close()
    print("connected")
"""

needs_namespaces = pytest.mark.skipif(means() == WAITING, reason="takes root, and netem or /dev/net/tun")


@pytest.fixture
def ends():
    """Pairs of sockets that keep packets apart, as devices do: what is sent to the first is read from the second."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


def _received(end):
    packets = []
    while True:
        try:
            packets.append(end.recv(100))
        except BlockingIOError:
            return packets


def test_packets_are_late_and_in_order(ends):
    """Nothing arrives before its time, and everything when it has come."""
    (sender, source), (target, receiver) = ends
    direction = Direction(source.fileno(), target.fileno(), 60.0, 0.0)
    before = time.monotonic()
    for packet in (b"one", b"two"):
        sender.send(packet)
    direction.receive()
    due = direction.send(before + 59)
    assert (due >= before + 60, _received(receiver)) == (True, [])
    assert direction.send(time.monotonic() + 60) is None
    assert _received(receiver) == [b"one", b"two"]


@pytest.mark.parametrize(("loss", "arrived"), [(0.0, 100), (0.5, 50), (1.0, 0)])
def test_packets_are_lost(ends, loss, arrived):
    """About as many as it is told."""
    (sender, source), (target, receiver) = ends
    direction = Direction(source.fileno(), target.fileno(), 0.0, loss)
    count = 0
    for _ in range(100):
        sender.send(b"packet")
        direction.receive()
        direction.send(time.monotonic())
        count += len(_received(receiver))
    assert abs(count - arrived) <= 25 * (loss == 0.5)


@needs_namespaces
@pytest.mark.parametrize("loss", [0.0, 0.01], ids=["several segments a packet", "one segment a packet"])
def test_a_body_comes_whole(tmp_path, loss):
    """Also when packets are lost, and when the devices take several segments at once."""
    content = Content(tmp_path / "content")
    blob = content.blob(1_000_000)
    with far_origin(tmp_path, content.root, Line(0.002, loss)) as origin:
        status, body = get(origin.port, blob, host=origin.host)
    assert (status, f"sha256:{hashlib.sha256(body).hexdigest()}") == (200, blob.rpartition("/")[2])


@needs_namespaces
def test_networks_are_apart():
    """A process in a network of its own reaches itself at an address that is taken elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = [*own_network(), sys.executable, "-c", APART, str(taken.getsockname()[1])]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.stdout, done.stderr) == ("connected\n", "")


@needs_namespaces
def test_round_trip(tmp_path):
    """An answer over the line takes the round trip of the connection and that of the request."""
    content = Content(tmp_path / "content")
    blob = content.blob(1000)
    with far_origin(tmp_path, content.root, Line(0.05)) as origin:
        began = time.monotonic()
        status, body = get(origin.port, blob, host=origin.host)
        took = time.monotonic() - began
    assert (status, len(body)) == (200, 1000)
    assert took >= 0.1


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(tmp_path, number):
    """However the process ends that opened a line, its devices, its namespace and the upstream go with it."""
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        host, pid = process.stdout.readline().split()
        prefix, _, last = host.rpartition(".")
        device = _device(f"{prefix}.{int(last) - 1}")
        assert device
        process.send_signal(number)
        process.wait(LIMIT)
    deadline = time.monotonic() + LIMIT
    # Another line may be given the same address meanwhile.
    while os.path.exists(f"/proc/{pid}") or device in _devices().values():
        assert time.monotonic() < deadline, _devices()
        time.sleep(0.05)


def _device(address):
    """The number of the device that has an address; no other one is ever given it."""
    return _devices().get(f"{address}/30")


def _devices():
    shown = subprocess.run(["ip", "-o", "-4", "address"], capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    lines = [line.split() for line in shown.splitlines()]
    return {line[3]: line[0] for line in lines}
