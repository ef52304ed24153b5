"""Shows the progress of a job: bars on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mirror.core.units import format_bytes

_POLL_INTERVAL_S = 0.5
# How often a log gets a line while no image ends.
_LINE_INTERVAL_S = 10.0
# A job that waits longer is reported as waiting.
_WAITING_AFTER_S = 3.0


class _View(Protocol):
    def show(self, order: dict[str, Any]) -> None:
        """Show the state of a job."""
        ...


def watch(poll: Callable[[], dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """Poll a job until it has ended, and show its progress; return its final state."""
    began = time.monotonic()
    report_waiting = not quiet
    with _view(quiet) as view:
        while True:
            order = poll()
            if order["result"] == "waiting":
                if report_waiting and time.monotonic() - began > _WAITING_AFTER_S:
                    typer.echo("waiting for earlier jobs", err=True)
                    report_waiting = False
            else:
                report_waiting = False
                view.show(order)
                if order["result"] != "running":
                    return order
            time.sleep(_POLL_INTERVAL_S)


@contextlib.contextmanager
def _view(quiet: bool) -> Iterator[_View]:
    if quiet:
        yield _Silent()
    elif sys.stdout.isatty():
        name, amount = TextColumn("{task.description}"), DownloadColumn(binary_units=True)
        with Progress(name, BarColumn(), amount, TransferSpeedColumn(), TimeRemainingColumn(), console=Console()) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Silent:
    def show(self, order: dict[str, Any]) -> None:
        pass


class _NewResults:
    """Finds the images that have ended since the last poll."""

    def __init__(self) -> None:
        self._seen = 0

    def of(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        ended = sum(order["tags"].values())
        # A node that takes an order over begins anew.
        new, self._seen = max(0, ended - self._seen), ended
        return order["recent"][-new:] if new else []


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._results = _NewResults()

    def show(self, order: dict[str, Any]) -> None:
        for image in self._results.of(order):
            self._bars.console.print(_line(image), highlight=False, markup=False)
        under_way = {_name(image): image for image in order.get("images", ())}
        for name in [name for name in self._tasks if name not in under_way]:
            self._bars.remove_task(self._tasks.pop(name))
        for name, image in under_way.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None)
            self._bars.update(self._tasks[name], completed=image["bytes"], total=image["size"] or None)


class _Lines:
    def __init__(self) -> None:
        self._results = _NewResults()
        self._last_line = time.monotonic()

    def show(self, order: dict[str, Any]) -> None:
        lines = [_line(image) for image in self._results.of(order)]
        if not lines and time.monotonic() - self._last_line > _LINE_INTERVAL_S:
            lines = [_under_way(image) for image in order.get("images", ())]
        for line in lines:
            typer.echo(line)
            self._last_line = time.monotonic()


def _under_way(image: dict[str, Any]) -> str:
    """Return the line of an image that has not ended."""
    return f"{_name(image)}: {format_bytes(image['bytes'])} of {format_bytes(image['size'])}"


def _line(image: dict[str, Any]) -> str:
    """Return the line of an image that has ended."""
    return f"{_name(image)}: {in_words(image)}{_bytes(image)}"


def _name(image: dict[str, Any]) -> str:
    """Return the name of an image, with the node if several carry the order out."""
    return f"{image['image']} at {image['node']}" if "node" in image else str(image["image"])


def in_words(image: dict[str, Any]) -> str:
    """Return the result of an image; one that was not cached before is new, not moved."""
    result: str = image["result"]
    if result == "completed":
        return "now complete"
    return "new" if result == "moved" and image.get("old") is None else result.replace("_", " ")


def _bytes(image: dict[str, Any]) -> str:
    fetched, held = image["bytes_fetched"], image["bytes_held"]
    return f", {format_bytes(fetched)} fetched, {format_bytes(held)} were already here" if fetched or held else ""
