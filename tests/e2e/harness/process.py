"""Processes that the tests start: bounded waits, a log file each, and an end by process id."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.waiting import NotInTime, wait_until

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_TAIL_LINES = 30


class HarnessError(AssertionError):
    """Something around the mirror, or the mirror's process itself, did not do what the test needs."""


def find_command(name: str) -> str:
    """The full path of an installed command; HarnessError (a failure, never a skip) when it is missing."""
    path = shutil.which(name, path=search_path())
    if path is None:
        raise HarnessError(f"the command {name!r} is not installed: run tests/e2e/install.sh as root")
    return path


def search_path() -> str:
    """PATH with the directories that hold servers, which a plain user's PATH lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])


def client_environment(home: Path) -> dict[str, str]:
    """An environment in which https to anything but loopback is refused at once."""
    home.mkdir(parents=True, exist_ok=True)
    refused = "http://127.0.0.1:1"
    return {
        "PATH": search_path(),
        "HOME": str(home),
        "TMPDIR": str(home),
        "HTTPS_PROXY": refused,
        "NO_PROXY": "127.0.0.1",
    }


def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on a port of this machine."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def run(
    argv: Sequence[str], environment: Mapping[str, str], timeout: float, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a client to its end; it is killed, and TimeoutExpired raised, after `timeout` seconds."""
    command = [find_command(argv[0]), *argv[1:]]
    return subprocess.run(command, env=dict(environment), input=stdin, capture_output=True, timeout=timeout, check=False)


def succeed(argv: Sequence[str], environment: Mapping[str, str], timeout: float = 60) -> bytes:
    """Standard output of a client that has to succeed; HarnessError with its error output if not."""
    done = run(argv, environment, timeout)
    if done.returncode != 0:
        raise HarnessError(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.decode()[-3000:]}")
    return done.stdout


class Program:
    """A running server process with its log file."""

    def __init__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start the program; its output is appended to `log`, whose directory is its working directory."""
        self.name = log.stem
        self.log = log
        command = [find_command(argv[0]), *argv[1:]]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def tail(self) -> str:
        """The last lines of the log, for failure messages; empty once the log has been removed."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def wait_ready(self, ready: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait until it is ready; HarnessError with the log's tail if it ends or takes too long."""
        try:
            wait_until(lambda: not self.running or ready(), f"{self.name}: {what}", timeout)
            if not self.running:
                raise HarnessError(f"{self.name} ended with {self._process.returncode} before: {what}")
        except (HarnessError, NotInTime) as error:
            self.kill()
            raise HarnessError(f"{error}\n--- log of {self.name} ---\n{self.tail()}") from None

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """The exit code; after `timeout` seconds the process is killed and HarnessError raised."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            message = f"{self.name} was still running {timeout:g} s after SIGTERM and had to be killed"
            raise HarnessError(f"{message}\n--- log of {self.name} ---\n{self.tail()}") from None

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM, then the exit code; killed after `timeout` seconds."""
        self.terminate()
        return self.wait(timeout)

    def freeze(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self.running:
            self._process.kill()
        self._process.wait(10)
