"""The log: what it shows, and what not."""

import json
import logging

import pytest
import structlog

from mirror.config.sections import Log
from mirror.service import logs


@pytest.fixture(autouse=True)
def restored():
    """Leaves logging as it was for the tests that follow."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("style", ["console", "json"])
def test_tracebacks_do_not_show_values(capsys, style):
    """A traceback shows where, but not the values of variables, among which are credentials."""
    logs.configure(Log(format=style))

    def fail():
        password = "hunter2"
        raise ValueError(len(password))

    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("broken")
    shown = capsys.readouterr().err
    assert "broken" in shown
    assert "in fail" in shown
    assert "= 'hunter2'" not in shown


def test_json_lines(capsys):
    """In JSON every event is one line, whatever is in it."""
    logs.configure(Log(format="json", level="warning"))
    log = structlog.get_logger()
    log.info("unseen")
    log.warning("seen", path="/v2/\n\x1b[31m", raw=b"\xff")
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["path"]) == ("seen", "warning", "/v2/\n\x1b[31m")


def test_console_cannot_be_painted(capsys):
    """What a client sends does not reach the terminal as control characters."""
    logs.configure(Log())
    structlog.get_logger().info("request_refused", path="/v2/\n\x1b[31m\rFAKE", cause="x\x1b]0;y\x07")
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_libraries_are_bounded(capsys):
    """What asyncio says again and again is a few lines of our form, without the values of objects."""
    logs.configure(Log(format="json"))
    for _ in range(1000):
        logging.getLogger("asyncio").error(
            "Exception in callback\nhandle: <Handle secret>", exc_info=OSError(24, "Too many open files")
        )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    event = json.loads(lines[0])
    assert (event["event"], event["level"], event["logger"], event["said"]) == (
        "library",
        "error",
        "asyncio",
        "Exception in callback",
    )
    assert "Too many open files" in event["exception"]
    assert "secret" not in lines[0]
