"""The other side of `tests.support.launcher`: a process that has imported the mirror, and forks for each start of it.

An interpreter that imports the mirror anew takes half a second of a core, and the tests start some hundred and fifty. What is
forked runs `python -m mirror` to the letter: a process of its own with the arguments, environment, directory and standard streams
that were asked for. Started as `python -m tests.support.forkserver DESCRIPTOR`, with the socket that orders come through; it ends
when the other end of it is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any

import mirror.cli  # noqa: F401 - what is forked has it already
from tests.support.namespaces import enter
from tests.support.unhurried import move_limits

_STREAMS = 3


class ForkServer:
    """Takes orders one at a time; each comes with a pipe for its news, and standard input, output and error."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._news: dict[int, int] = {}
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> dict[str, Any] | None:
        """Serve until the end, for which None stands; in a forked process, return the order that it is for."""
        while True:
            ready, _, _ = select.select([self._orders, self._awake], [], [])
            if self._awake in ready:
                os.read(self._awake, 4096)
                self._reap()
            if self._orders in ready:
                data, descriptors, _, _ = socket.recv_fds(self._orders, 1 << 20, 1 + _STREAMS)
                if not data:
                    return None
                if self._start(descriptors):
                    return dict(json.loads(data))

    def _start(self, descriptors: list[int]) -> bool:
        news, *streams = descriptors
        pid = os.fork()
        if pid == 0:
            self._become(streams)
            return True
        self._news[pid] = news
        self._tell(news, pid)
        for stream in streams:
            os.close(stream)
        return False

    def _become(self, streams: list[int]) -> None:
        """Have nothing of the server's but what it has imported."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # What a shell has started in the background ignores it, and so do its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(_STREAMS, max(self._wake, *streams, *self._news.values(), self._orders.fileno()) + 1)
        self._orders.detach()

    def _reap(self) -> None:
        for pid in list(self._news):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                news = self._news.pop(pid)
                self._tell(news, os.waitstatus_to_exitcode(status))
                os.close(news)

    @staticmethod
    def _tell(news: int, number: int) -> None:
        # Whoever asked may have gone meanwhile.
        with contextlib.suppress(BrokenPipeError):
            os.write(news, f"{number}\n".encode())


def _run(order: dict[str, Any]) -> None:
    if order["network"]:
        enter(order["network"])
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv[1:] = order["arguments"]
    if order["unhurried"]:
        move_limits()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they are this process's own until its end
    sys.stdout = open(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    runpy.run_module("mirror", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    wanted = ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()
    if wanted is not None:
        _run(wanted)
