"""The log: one line per event, on standard error."""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from mirror.config.sections import Log
from mirror.service.log_writer import Event, LogWriter
from mirror.throttled_log import ThrottledLog
from mirror.tracing import request_id

# Priorities of the journal (sd-daemon(3)).
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}


def configure(config: Log, writer: LogWriter | None = None) -> None:
    """Set up logging for this process.

    Args:
        writer: takes the lines; None for one of its own.
    """
    writer = writer if writer is not None else LogWriter()
    level = logging.getLevelName(config.level.upper())
    render = _renderer(config, writer)
    writer.render = partial(_render_late, render)
    structlog.configure(
        processors=[_with_origin(writer), structlog.processors.add_log_level, _stamped, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # One write per line: several processes share the stream.
        logger_factory=structlog.WriteLoggerFactory(writer),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    # asyncio and aiohttp log unexpected errors; their lower levels are not useful.
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_Libraries()], force=True)
    logging.captureWarnings(capture=True)


def _with_origin(writer: LogWriter) -> Processor:
    """Returns the processor that adds the process, and the request that the event belongs to."""

    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.update(writer.identity)
        if name := request_id.get():
            event.setdefault("request", name)
        return event

    return add


def _stamped(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC)
    return event


def _render_late(render: Processor, event: Event) -> str:
    """Render an event of an earlier time."""
    event["timestamp"] = datetime.fromtimestamp(float(str(event["timestamp"])), UTC)
    return str(render(None, "", event))


def _renderer(config: Log, writer: LogWriter) -> Processor:
    """Returns the processor that makes a line of an event."""
    journal, console = writer.is_journal, config.format == "console"
    finish: Processor = structlog.processors.JSONRenderer()
    if console:
        finish = structlog.dev.ConsoleRenderer(colors=writer.is_terminal, exception_formatter=_traceback)

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        # The journal has a time of its own.
        at: datetime = event.pop("timestamp")
        if not (journal and console):
            event["timestamp"] = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        priority = f"<{_PRIORITIES.get(str(event.get('level')), 6)}>" if journal else ""
        event = _without_controls(event) if console else _encodable(structlog.processors.format_exc_info(logger, method, event))
        line = str(finish(logger, method, event))
        # Each line of a traceback is an entry of the journal.
        return priority + (line.replace("\n", "\n" + priority) if console and journal else line)

    return render


def _without_controls(event: EventDict) -> EventDict:
    """Escape control characters: foreign text must not control a terminal. JSON escapes them itself."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = repr(value)
    return event


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback for people. The colored one shows the values of variables, which may be credentials."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    stream.write("".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in plain.getvalue()))


def _encodable(value: Any) -> Any:
    """A value of a line as UTF-8: other bytes of a request become `?`, because parsers of JSON may refuse them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {key: _encodable(one) for key, one in value.items()}
    return [_encodable(one) for one in value] if isinstance(value, list | tuple) else value


class _Libraries(logging.Handler):
    """Logs the records of libraries in this log's form; at a limited rate, because an error in a loop would fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._log = ThrottledLog(structlog.get_logger())

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record without the further lines of its message, which show the values of objects."""
        said = record.getMessage().partition("\n")[0][:200]
        level = "error" if record.levelno >= logging.ERROR else "warning"
        where = f"{record.name} {record.module}:{record.lineno}"
        self._log.log(level, "library", where, logger=record.name, said=said, exc_info=record.exc_info)
