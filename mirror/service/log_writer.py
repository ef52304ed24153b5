"""Writes the lines of the log. While a process serves, a thread writes them: a slow reader of the log delays no request.

The supervisor has no threads. A reader that stands still delays it once, by two seconds; then lines are dropped.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO, TypeAlias

Event: TypeAlias = dict[str, object]
"""The fields of a line. `timestamp` is in seconds since the epoch."""

# Lines that wait to be written. Lines of the access log leave half of the space to others.
_MAX_LINES = 10_000
_MAX_ACCESS_LINES = _MAX_LINES // 2
# Writes of so many bytes to a pipe are atomic (pipe(7), PIPE_BUF): lines of several processes do not mix.
_MAX_BATCH = select.PIPE_BUF
# Lines are gathered for this time, so that a thread does not wake up for each.
_GATHER_S = 0.01
# How long the end of the process, and a process without the thread, wait for a reader of the log.
_TIMEOUT_S = 2.0


class LogWriter:
    """The end of the log of one process: standard error.

    Attributes:
        identity: fields that every line has, such as the process.
        render: turns an event into a line.

    Args:
        stream: where the lines go; None for the present standard error.
    """

    def __init__(self, identity: Mapping[str, int] | None = None, stream: TextIO | None = None) -> None:
        self.identity = identity if identity is not None else {"pid": os.getpid()}
        self.render: Callable[[Event], str] = str
        self._stream = stream
        self._lines: deque[str | Event] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._dropped = 0
        # The reader has not taken the last line within the time limit.
        self._stuck = False

    @property
    def is_journal(self) -> bool:
        """Whether the journal of systemd reads the stream (systemd.exec(5), JOURNAL_STREAM)."""
        with contextlib.suppress(OSError, ValueError):
            status = os.fstat(self._target.fileno())
            return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        return False

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the stream."""
        return self._target.isatty()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Write in a thread inside the context. What waits at its end is written if the reader takes it within two seconds."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stopping = True
            self._wake.set()
            self._thread.join(_TIMEOUT_S)
            self._thread = None

    def write(self, line: str) -> None:
        """Write a line, with its end; structlog calls it."""
        self._put(line, _MAX_LINES)

    def flush(self) -> None:
        """Do nothing: each write is flushed."""

    def put(self, event: Event) -> None:
        """Render and write a line of the access log. If too many wait, it is dropped, and the next line says so."""
        self._put(event, _MAX_ACCESS_LINES)

    @property
    def _target(self) -> TextIO:
        return self._stream if self._stream is not None else sys.stderr

    def _put(self, line: str | Event, most: int) -> None:
        if self._thread is None:
            self._stuck = not self._is_writable(0.0 if self._stuck else _TIMEOUT_S)
            if self._stuck:
                self._dropped += 1
            else:
                self._send(self._text(line))
                self._report_dropped()
        elif len(self._lines) >= most:
            self._dropped += 1
        else:
            self._lines.append(line)
            if not self._wake.is_set():
                self._wake.set()

    def _run(self) -> None:
        while not self._stopping or self._lines:
            self._wake.wait()
            if not self._stopping:
                time.sleep(_GATHER_S)
            self._wake.clear()
            while self._lines:
                self._send(self._batch())
            self._report_dropped()

    def _report_dropped(self) -> None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            event = {"event": "log_lines_dropped", "level": "warning", "timestamp": time.time(), "count": count}
            self._send(self._text(event))

    def _is_writable(self, timeout: float) -> bool:
        """Whether the stream takes a line within so many seconds."""
        poll = select.poll()
        try:
            poll.register(self._target.fileno(), select.POLLOUT)
        except (OSError, ValueError):
            # No file, as in tests, or closed.
            return True
        return bool(poll.poll(timeout * 1000))

    def _batch(self) -> str:
        """The lines that wait, as far as one write is atomic; at least one."""
        batch = [self._text(self._lines.popleft())]
        size = len(batch[0])
        while self._lines:
            line = self._text(self._lines[0])
            size += len(line)
            if size > _MAX_BATCH:
                # Rendered, so that it is not rendered again.
                self._lines[0] = line
                break
            self._lines.popleft()
            batch.append(line)
        return "".join(batch)

    def _text(self, line: str | Event) -> str:
        if isinstance(line, str):
            return line
        try:
            return self.render({**line, **self.identity}) + "\n"
        except Exception:  # noqa: BLE001 - one line must not end the thread that writes all others
            self._dropped += 1
            return ""

    def _send(self, text: str) -> None:
        # Without a reader, or space on the disk, there is no place to report that.
        with contextlib.suppress(OSError, ValueError):
            self._target.write(text)
            self._target.flush()
