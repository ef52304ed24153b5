"""Ports for processes under test."""

import socket

from tests.support.ports import PortBlock


def test_processes_have_ports_of_their_own():
    """Two test processes never give out the same port, and none gives out one that is listened on."""
    one, two = PortBlock(), PortBlock()
    try:
        with socket.create_server(("127.0.0.1", one.next())) as server:
            taken = server.getsockname()[1]
            ours = [one.next() for _ in range(200)]
            theirs = [two.next() for _ in range(200)]
        assert taken not in ours
        assert set(ours).isdisjoint(theirs)
    finally:
        one.close()
        two.close()
