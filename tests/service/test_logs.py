"""The log: what it shows, and what not."""

import json
import logging
import os

import pytest
import structlog

from mirror.config.sections import Log
from mirror.service import logs
from mirror.service.log_writer import LogWriter


@pytest.fixture(autouse=True)
def _restored(restored):
    """The log belongs to all tests."""


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


def test_json_is_utf8(capsys):
    """Bytes of a request that are no UTF-8 leave lines that every parser of JSON takes (RFC 8259 section 8.2)."""
    logs.configure(Log(format="json"))
    foreign = b"\xff\xed\xa0\x80".decode(errors="surrogateescape")
    structlog.get_logger().info("client_refused", host=foreign, more=[{"name": foreign}], umlaut="\u00e4")
    event = json.loads(capsys.readouterr().err)
    assert (event["host"], event["more"], event["umlaut"]) == ("????", [{"name": "????"}], "\u00e4")


def test_console_cannot_be_painted(capsys):
    """What a client sends does not reach the terminal as control characters."""
    logs.configure(Log())
    structlog.get_logger().info("request_refused", path="/v2/\n\x1b[31m\rFAKE", cause="x\x1b]0;y\x07")
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "\x1b" not in shown
    assert "\x07" not in shown
    try:
        raise ValueError("\x1b]0;y\x07\u202e")
    except ValueError:
        structlog.get_logger().exception("request_failed")
    shown = capsys.readouterr().err
    assert r"\x1b]0;y\x07\u202e" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)


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


@pytest.mark.parametrize(("style", "dated"), [("console", False), ("json", True)])
def test_journal(monkeypatch, tmp_path, style, dated):
    """For the journal each line has its priority (sd-daemon(3)), and lines for people have no second time."""
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        logs.configure(Log(format=style), LogWriter({"worker": 3}, stream))
        structlog.get_logger().info("first")
        structlog.get_logger().warning("second")
        stream.seek(0)
        first, second = stream.read().splitlines()
    assert (first[:3], second[:3]) == ("<6>", "<4>")
    assert ("20" in first.partition("worker")[0] or "timestamp" in first) is dated
    assert "worker" in first


def test_each_line_names_its_process(capsys):
    """One log of several processes can be told apart: workers by their number, a single process by its id."""
    logs.configure(Log(format="json"))
    structlog.get_logger().info("single")
    logs.configure(Log(format="json"), LogWriter({"worker": 1}))
    structlog.get_logger().info("one of several")
    logging.getLogger("asyncio").error("library")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["pid"] == os.getpid()
    assert [line["worker"] for line in lines[1:]] == [1, 1]
