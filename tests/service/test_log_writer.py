"""Writing of lines while the process serves."""

import contextlib
import json
import os
import select
import threading
import time

import pytest

from mirror.config.sections import Log
from mirror.service import log_writer, logs
from mirror.service.log_writer import LogWriter
from tests.support.waiting import LIMIT


@pytest.fixture(autouse=True)
def _restored(restored):
    """The log belongs to all tests."""


@pytest.fixture
def pipe():
    """A pipe that nobody reads: the descriptor to read, and a stream."""
    source, target = os.pipe()
    reader, writer = os.fdopen(source, "r"), os.fdopen(target, "w")
    yield reader, writer
    # First the end that is read: who waits to write is told that nobody reads.
    reader.close()
    with contextlib.suppress(BrokenPipeError):
        writer.close()


def event(number):
    return {"event": "request", "level": "info", "timestamp": time.time(), "number": number, "path": "x" * 200}


def test_reader_that_stands_still_delays_nothing(pipe):
    """Lines beyond what is kept are dropped at once, and the next lines say how many; lines of events still have space."""
    reader, stream = pipe
    writer = LogWriter({"worker": 1}, stream)
    logs.configure(Log(format="json"), writer)
    found, total = [], 2 * log_writer._MAX_ACCESS_LINES
    with writer.in_thread():
        # All of it in this thread, which would hang here if it wrote to the full pipe itself.
        for number in range(total):
            writer.put(event(number))
        writer.write('{"event": "important"}\n')

        def read():
            found.extend(map(json.loads, iter(reader.readline, "")))

        reading = threading.Thread(target=read)
        reading.start()
    stream.close()
    reading.join(LIMIT)
    assert "important" in [line["event"] for line in found]
    numbers = [line["number"] for line in found if line["event"] == "request"]
    (dropped,) = (line for line in found if line["event"] == "log_lines_dropped")
    assert numbers == sorted(numbers)
    assert len(numbers) + dropped["count"] == total
    assert dropped["count"] > 0
    assert {line.get("worker", 1) for line in found} == {1}


def test_end_does_not_wait_for_a_reader_for_ever(pipe, monkeypatch):
    """A process can stop although nobody takes its lines."""
    _, stream = pipe
    monkeypatch.setattr(log_writer, "_TIMEOUT_S", 0.05)
    writer = LogWriter({}, stream)
    logs.configure(Log(format="json"), writer)
    with writer.in_thread():
        for number in range(1000):
            writer.put(event(number))


def test_lines_in_the_thread_have_the_time_of_their_event(pipe):
    """What waits to be written is dated when it happened."""
    reader, stream = pipe
    writer = LogWriter({}, stream)
    logs.configure(Log(format="json"), writer)
    with writer.in_thread():
        writer.put({"event": "request", "level": "info", "timestamp": 1_700_000_000.25})
    assert json.loads(reader.readline())["timestamp"] == "2023-11-14T22:13:20.250000Z"


def test_line_that_cannot_be_rendered(pipe):
    """It is dropped and counted; the thread writes the lines after it."""
    reader, stream = pipe
    writer = LogWriter({"worker": 1}, stream)
    logs.configure(Log(format="json"), writer)
    render = writer.render

    def fails_once(line):
        writer.render = render
        raise TypeError("no")

    writer.render = fails_once
    with writer.in_thread():
        writer.put(event(1))
        writer.put(event(2))
    stream.close()
    lines = [json.loads(line) for line in reader]
    assert [line["number"] for line in lines if line["event"] == "request"] == [2]
    assert [line["count"] for line in lines if line["event"] == "log_lines_dropped"] == [1]


def test_reader_that_stands_still_without_a_thread(pipe, monkeypatch):
    """The supervisor, which has no thread, waits for it once; its watchdog would end it otherwise."""
    reader, stream = pipe
    monkeypatch.setattr(log_writer, "_TIMEOUT_S", 0.05)
    os.set_blocking(stream.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(stream.fileno(), b"x" * 4095 + b"\n")
    os.set_blocking(stream.fileno(), True)
    writer = LogWriter({"pid": 1}, stream)
    logs.configure(Log(format="json"), writer)
    for _ in range(3):
        # In this thread, which would hang here.
        writer.write('{"event": "lost"}\n')
    while reader.readline().startswith("x") and select.select([reader], [], [], 0)[0]:
        pass
    writer.write('{"event": "taken"}\n')
    stream.close()
    found = [json.loads(line) for line in reader if not line.startswith("x")]
    assert [line["event"] for line in found] == ["taken", "log_lines_dropped"]
    assert found[1]["count"] == 3
