"""Child processes: started, watched through /proc and ended by their id, never by a name."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05
# linux/prctl.h.
PR_SET_PDEATHSIG = 1


class NotTakenError(Exception):
    """A measurement could not be taken; the text says why."""


class Child:
    """A server under measurement with everything it starts; its output goes to a file."""

    def __init__(self, argv: list[str], log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Start `argv`. Raises NotTakenError if it cannot be executed."""
        self.log = log
        self._argv = argv
        try:
            with open(log, "wb") as output:
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                )
        except OSError as error:
            raise NotTakenError(f"{argv[0]} cannot be started: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def has_ended(self) -> bool:
        """The process has ended; descendants may be left."""
        return self._popen.poll() is not None

    def check_alive(self) -> None:
        """Raises NotTakenError with the last line of its output if the process has ended."""
        code = self._popen.poll()
        if code is not None:
            raise NotTakenError(f"{' '.join(self._argv[:4])} ended with status {code}: {self.last_line()}")

    def last_line(self) -> str:
        """The last line it printed, which is where programs say what was wrong."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "(no output)"

    def first_line(self, limit: float) -> str:
        """The line that it prints when it is ready. Raises NotTakenError if that takes longer than `limit` seconds."""
        deadline = time.monotonic() + limit
        while not (printed := self.log.read_text()).endswith("\n"):
            self.check_alive()
            if time.monotonic() > deadline:
                raise NotTakenError(f"{' '.join(self._argv[:4])} was not ready within {limit:.0f} s")
            time.sleep(POLL_SECONDS)
        return printed.splitlines()[0]

    def cpu_seconds(self) -> float:
        """User and system time of the process tree so far, including children that have ended."""
        return sum(_cpu_ticks(pid) for pid in self._tree()) / TICKS_PER_SECOND

    def signal(self, number: int) -> None:
        """Send a signal to the process and to all that it has started, itself first."""
        for pid in self._tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def resident_bytes(self) -> int:
        """Resident size summed over the process tree; pages shared between processes count in each."""
        return sum(_resident_pages(pid) for pid in self._tree()) * PAGE_BYTES

    def stop(self) -> None:
        """SIGTERM, then after STOP_SECONDS SIGKILL; descendants that outlive the process are killed too."""
        descendants = {pid: _start_time(pid) for pid in self._tree() if pid != self._popen.pid}
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait(STOP_SECONDS)
        for pid, started in descendants.items():
            # The start time tells the process we saw from another one that was given its id since.
            if started is not None and _start_time(pid) == started:
                os.kill(pid, signal.SIGKILL)

    def _tree(self) -> list[int]:
        if self._popen.poll() is not None:
            return []
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            fields = _stat_fields(int(entry)) if entry.isdigit() else None
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
        tree = [self._popen.pid]
        for pid in tree:
            tree.extend(children.get(pid, []))
        return tree


class ResidentPeak:
    """The largest resident size of a child, sampled in a thread while the `with` block runs."""

    def __init__(self, child: Child, every: float = 0.1) -> None:
        self.bytes = 0
        self._child = child
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.bytes = max(self.bytes, self._child.resident_bytes())


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it ends, however that happens (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; None if the process is gone (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    return text[text.rindex(")") + 2 :].split()


def _cpu_ticks(pid: int) -> int:
    fields = _stat_fields(pid)
    return sum(int(field) for field in fields[11:15]) if fields else 0


def _start_time(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def _resident_pages(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[21]) if fields else 0
