"""Hosts with a network of their own: namespaces joined by a router, whose lines lose some packets or all, or delay them.

The thread that makes the network stays at the router until `close`: the servers of a test, what it starts, and its connections
are there. A namespace is an open file, and goes with the last process in it. Linux, namespaces(7); root is needed.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.harness.process import find_command
from tests.support.launcher import ROOT, launcher
from tests.support.namespaces import current, enter, enter_new
from tests.support.ports import block

_COMMAND_SECONDS = 20


class NotPermittedError(Exception):
    """This process may not make namespaces, or the kernel lacks what the lines need."""


class Network:
    """A router and the hosts that were added.

    Attributes:
        address: of the router.
    """

    address = "10.0.0.1"

    def __init__(self) -> None:
        """Move this thread to a router. Raises NotPermittedError."""
        # Both belong to all tests of this process, and stay where those are.
        launcher()
        block()
        self._hosts: list[Host] = []
        self._lines: list[subprocess.Popen[str]] = []
        self._outside = current()
        try:
            self.space = enter_new()
        except OSError as error:
            os.close(self._outside)
            raise NotPermittedError(str(error)) from error
        try:
            self.run("ip", "link", "set", "lo", "up")
            self.run("ip", "address", "add", f"{self.address}/32", "dev", "lo")
            self.run("iptables", "-w", "-L")
        except subprocess.CalledProcessError as error:
            self.close()
            raise NotPermittedError(f"{error.cmd}: {error.stderr}") from error
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def host(self, *, delay: float = 0.0, loss: float = 0.0) -> "Host":
        """Add a host.

        Args:
            delay: seconds that each packet takes on its line.
            loss: the probability with which a packet gets lost.
        """
        number = len(self._hosts) + 1
        near, far = self._relay(delay, loss) if delay or loss else self._cable(number)
        host = Host(self, f"10.0.{number}.2")
        self._hosts.append(host)
        self.run("ip", "link", "set", far, "netns", host.path)
        self.run("ip", "address", "add", f"10.0.{number}.1/24", "dev", near)
        self.run("ip", "link", "set", near, "up")
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", far)
        host.run("ip", "link", "set", far, "up")
        host.run("ip", "route", "add", "default", "via", f"10.0.{number}.1")
        return host

    def run(self, *argv: str, space: int | None = None) -> None:
        """Run a command at the router, or in another namespace."""
        command = [
            find_command("nsenter"),
            f"--net={path_of(self.space if space is None else space)}",
            "--",
            find_command(argv[0]),
            *argv[1:],
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMMAND_SECONDS)

    def close(self) -> None:
        """Move the thread back. The hosts go when nothing runs there any more."""
        enter(path_of(self._outside))
        for line in self._lines:
            line.kill()
            line.communicate(timeout=10)
        for descriptor in (self._outside, self.space, *(host.space for host in self._hosts)):
            os.close(descriptor)

    def _cable(self, number: int) -> tuple[str, str]:
        near, far = f"near{number}", f"far{number}"
        self.run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        return near, far

    def _relay(self, delay: float, loss: float) -> tuple[str, str]:
        argv = [sys.executable, "-m", "bench.relay", str(delay), str(loss)]
        line = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._lines.append(line)
        assert line.stdout is not None
        near, far = line.stdout.readline().split()
        return near, far


class Host:
    """A namespace with one address and a line to the router.

    Attributes:
        path: of the namespace.
        space: the same, open.
    """

    def __init__(self, network: Network, address: str) -> None:
        self.address = address
        with ThreadPoolExecutor(1) as pool:
            self.space = pool.submit(enter_new).result()
        self.path = path_of(self.space)
        self._network = network

    def run(self, *argv: str) -> None:
        """Run a command on the host."""
        self._network.run(*argv, space=self.space)

    def lose(self, address: str, *port: str) -> None:
        """Lose what comes from an address, until `heal`; only from a port if that is said."""
        source = ("-p", "tcp", "--sport", *port) if port else ()
        self.run("iptables", "-w", "-I", "INPUT", "-s", address, *source, "-j", "DROP")

    def isolate(self) -> None:
        """Lose what comes and what goes, until `heal`; nobody is told."""
        for rule in (("INPUT", "!", "-i", "lo"), ("OUTPUT", "!", "-o", "lo")):
            self.run("iptables", "-w", "-I", *rule, "-j", "DROP")

    def heal(self) -> None:
        """Lose nothing any more."""
        self.run("iptables", "-w", "-F")


def path_of(descriptor: int) -> str:
    """The name of an open file for other processes."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"
