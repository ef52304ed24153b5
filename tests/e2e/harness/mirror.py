"""The mirror under test, as an operator runs it: `python -m mirror serve` with a configuration file."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.harness.client import answers, request
from tests.e2e.harness.process import HarnessError, Program
from tests.support.ports import free_port
from tests.support.waiting import wait_until

_STARTUP_SECONDS = 30
_LOG_SECONDS = 10
_STOP_SECONDS = 40  # SIGTERM drains for at most 30 s


class Mirror:
    """A mirror process with its own store; a restart keeps the addresses and the store."""

    def __init__(self, directory: Path, configuration: Mapping[str, Any], port: int, admin_port: int) -> None:
        """Write the configuration file; nothing is started yet."""
        directory.mkdir(parents=True)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self.store = Path(configuration["storage"]["path"])
        self._log = directory / "mirror.log"
        self.config = directory / "mirror.yaml"
        self.config.write_text(yaml.safe_dump(dict(configuration)))

    def start(self) -> None:
        """Start the process and wait until it says that it is alive."""
        self._program = Program([sys.executable, "-m", "mirror", "serve", "--config", str(self.config)], self._log)
        self._program.wait_ready(lambda: answers(f"{self.admin_url}/healthz"), "GET /healthz", _STARTUP_SECONDS)

    def terminate(self) -> None:
        """Send SIGTERM, without waiting for the end."""
        self._program.terminate()

    def finish(self) -> None:
        """Wait for the end after SIGTERM; HarnessError unless it exits with 0 in time."""
        code = self._program.wait(_STOP_SECONDS)
        if code != 0:
            raise HarnessError(f"the mirror exited with {code}\n--- log of the mirror ---\n{self._program.tail()}")

    def stop(self) -> None:
        """SIGTERM and a clean exit."""
        self.terminate()
        self.finish()

    def crash(self) -> None:
        """SIGKILL, as a power cut would end it but for the page cache."""
        if not self._program.running:
            raise HarnessError(f"the mirror had ended before it was killed\n{self._program.tail()}")
        self._program.kill()

    def log_lines(self, text: str) -> list[str]:
        """The lines of the log that contain a text."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if text in line]

    def logged(self, text: str) -> list[str]:
        """The lines of the log that contain a text, once there is one: a thread writes them."""
        wait_until(lambda: bool(self.log_lines(text)), f"{text!r} in the log", _LOG_SECONDS)
        return self.log_lines(text)

    def check_log(self) -> None:
        """Fail if there is a traceback in the log, with what is around it."""
        lines = self._log.read_text(errors="replace").splitlines()
        found = ["\n".join(lines[max(0, at - 3) : at + 40]) for at, line in enumerate(lines) if "Traceback" in line]
        if found:
            raise AssertionError("the mirror has logged a traceback:\n" + "\n\n".join(found))

    def metric(self, sample: str) -> float:
        """The value of one sample of /metrics, by its name with labels and without the prefix."""
        for line in request("GET", f"{self.admin_url}/metrics").body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == f"registry_mirror_{sample}":
                return float(value)
        raise HarnessError(f"/metrics has no {sample}\n{self.log_tail()}")

    def sees_upstreams(self) -> bool:
        """Whether no upstream is taken to be down."""
        text = request("GET", f"{self.admin_url}/metrics").body.decode()
        samples = [line for line in text.splitlines() if line.startswith("registry_mirror_upstream_up{")]
        return all(float(line.rpartition(" ")[2]) for line in samples)

    @property
    def log_path(self) -> Path:
        """The file that has all of the log."""
        return self._log

    def wait_logged(self, text: str, timeout: float) -> None:
        """Wait until a text stands in the log."""
        wait_until(lambda: text in self._log.read_text(), f"the mirror's log: {text}", timeout)

    def log_tail(self) -> str:
        """The last lines of the log, for failure messages."""
        return self._program.tail()

    def close(self) -> None:
        """A clean stop if it still runs, for the end of a test."""
        if self._program.running:
            self.stop()


def start_mirror(
    directory: Path,
    upstreams: Sequence[str],
    *,
    tag_ttl: str = "60s",
    port: int | None = None,
    workers: int = 1,
    storage: Mapping[str, object] | None = None,
    sections: Mapping[str, object] | None = None,
) -> Mirror:
    """Start a mirror of docker.io whose upstreams are the given URLs, with its store below `directory` unless `storage` says
    something else.

    `sections` of the configuration are added, or take the place of those here.
    """
    port, admin_port = port or free_port(), free_port()
    configuration = {
        "listen": f"127.0.0.1:{port}",
        "admin": {"listen": f"127.0.0.1:{admin_port}"},
        "workers": workers,
        "storage": {"path": str(directory / "store"), **(storage or {})},
        "registries": {"docker.io": {"upstreams": list(upstreams)}},
        "tags": {"ttl": tag_ttl},
        **(sections or {}),
    }
    mirror = Mirror(directory, configuration, port, admin_port)
    mirror.start()
    return mirror
