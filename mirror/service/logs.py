"""The log: one line per event, on standard error."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mirror.config.sections import Log
from mirror.throttled_log import ThrottledLog

# The colored traceback shows the values of variables, which may be credentials.
_traceback = structlog.dev.plain_traceback


def _without_controls(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape control characters: foreign text must not control a terminal. JSON escapes them itself."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = repr(value)
    return event


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


def configure(config: Log) -> None:
    """Set up logging for this process."""
    level = logging.getLevelName(config.level.upper())
    renderers: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if config.format == "json"
        else [_without_controls, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # One write per line: several processes share the stream.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # asyncio and aiohttp log unexpected errors; their lower levels are not useful.
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_Libraries()], force=True)
