"""Sockets that the service manager passes: which are taken, and what is refused."""

import contextlib
import os
import socket

import pytest

from mirror.config.types import Address
from mirror.errors import ConfigurationError
from mirror.listener.passed_sockets import inherited
from mirror.listener.sockets import listen
from tests.support.ports import free_port


@contextlib.contextmanager
def passed(*sockets):
    """The descriptors of these sockets, one after the other, as systemd leaves them; the first, and the environment."""
    # High ones, which no other part of this process uses.
    first = 900
    for number, sock in enumerate(sockets, first):
        os.dup2(sock.fileno(), number)
    try:
        yield first, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": "a:b", "OTHER": "1"}
    finally:
        for number in range(first, first + len(sockets)):
            with contextlib.suppress(OSError):
                os.close(number)


def listening(port=0, host="127.0.0.1"):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.bind((host, port))
    sock.listen()
    return sock


def address_of(sock):
    host, port = sock.getsockname()[:2]
    return Address(host=host, port=port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_taken_by_address(host):
    """Whatever their order; the environment says no more of them, so no child of this process takes them for its own."""
    with listening(host=host) as one, listening(host=host) as other, passed(one, other) as (first, environment):
        sockets = inherited(environment, first)
        assert environment == {"OTHER": "1"}
        with listen("admin.listen", address_of(other), sockets) as admin, listen("listen", address_of(one), sockets) as registry:
            assert (registry.fileno(), admin.fileno()) == (first, first + 1)
            assert not registry.get_inheritable()
            assert not registry.getblocking()
        sockets.refuse_others()


def test_not_passed_is_opened():
    """An address for which no socket was passed is listened on as usual."""
    with listening() as one, passed(one) as (first, environment):
        sockets = inherited(environment, first)
        port = free_port()
        with listen("admin.listen", Address(host="127.0.0.1", port=port), sockets) as admin:
            assert admin.getsockname()[1] == port
        listen("listen", address_of(one), sockets).close()
        sockets.refuse_others()


def test_for_another_process():
    """What was meant for a parent is left alone."""
    with listening() as one, passed(one) as (first, environment):
        environment["LISTEN_PID"] = "1"
        inherited(environment, first).refuse_others()
        assert os.get_inheritable(first) is not None


def test_for_no_address():
    """A socket that nobody takes would have its clients wait for ever: both keys are named."""
    with listening() as one, passed(one) as (first, environment):
        sockets = inherited(environment, first)
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{one.getsockname()[1]}.*`listen` or `admin.listen`"):
            sockets.refuse_others()


@pytest.mark.parametrize("count", ["", "-1", "x", "65", "٣"])
def test_nonsense(count):
    with pytest.raises(ConfigurationError, match="LISTEN_FDS"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def datagrams():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def silent():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def local():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(f"\0registry-mirror-test-{os.getpid()}")
    sock.listen()
    return sock


@pytest.mark.parametrize("kind", [datagrams, silent, local])
def test_no_listening_tcp_socket(kind):
    """The descriptor is named."""
    with kind() as one, passed(one) as (first, environment), pytest.raises(ConfigurationError, match=f"descriptor {first}"):
        inherited(environment, first)


def test_no_socket():
    with open("/dev/null") as file, passed(file) as (first, environment), pytest.raises(ConfigurationError, match="no socket"):
        inherited(environment, first)
