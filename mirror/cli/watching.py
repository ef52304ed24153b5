"""Shows how far an order is: bars on a terminal, lines in a log."""

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

# How often the mirror is asked, and how often a log gets a line while nothing ends. Seconds.
_ASK_EVERY = 0.5
_LINE_EVERY = 10.0
_SAY_AFTER = 3.0


class _View(Protocol):
    def show(self, order: dict[str, Any]) -> None:
        """Show how far it is now."""
        ...


def watch(ask: Callable[[], dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """Ask until an order has come to its end, and show how far it is meanwhile; returns what came of it."""
    asked = time.monotonic()
    waits = not quiet
    with _view(quiet) as view:
        while True:
            order = ask()
            if order["result"] == "waiting":
                if waits and time.monotonic() - asked > _SAY_AFTER:
                    typer.echo("waits for what was ordered before", err=True)
                    waits = False
            else:
                waits = False
                view.show(order)
                if order["result"] != "running":
                    return order
            time.sleep(_ASK_EVERY)


@contextlib.contextmanager
def _view(quiet: bool) -> Iterator[_View]:
    if quiet:
        yield _Nothing()
    elif sys.stdout.isatty():
        name, amount = TextColumn("{task.description}"), DownloadColumn(binary_units=True)
        with Progress(name, BarColumn(), amount, TransferSpeedColumn(), TimeRemainingColumn(), console=Console()) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Nothing:
    def show(self, order: dict[str, Any]) -> None:
        pass


class _News:
    """The images that have ended since it was looked last."""

    def __init__(self) -> None:
        self._seen = 0

    def of(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        ended = sum(order["tags"].values())
        new, self._seen = ended - self._seen, ended
        return order["recent"][-new:] if new else []


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._news = _News()

    def show(self, order: dict[str, Any]) -> None:
        for image in self._news.of(order):
            self._bars.console.print(_line(image), highlight=False, markup=False)
        under_way = {image["image"]: image for image in order.get("images", ())}
        for name in [name for name in self._tasks if name not in under_way]:
            self._bars.remove_task(self._tasks.pop(name))
        for name, image in under_way.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None)
            self._bars.update(self._tasks[name], completed=image["bytes"], total=image["size"] or None)


class _Lines:
    def __init__(self) -> None:
        self._news = _News()
        self._told = time.monotonic()

    def show(self, order: dict[str, Any]) -> None:
        lines = [_line(image) for image in self._news.of(order)]
        if not lines and time.monotonic() - self._told > _LINE_EVERY:
            lines = [_under_way(image) for image in order.get("images", ())]
        for line in lines:
            typer.echo(line)
            self._told = time.monotonic()


def _under_way(image: dict[str, Any]) -> str:
    """One image that has not ended."""
    return f"{image['image']}: {format_bytes(image['bytes'])} of {format_bytes(image['size'])}"


def _line(image: dict[str, Any]) -> str:
    """One image that has ended."""
    return f"{image['image']}: {in_words(image)}{_bytes(image)}"


def in_words(image: dict[str, Any]) -> str:
    """What came of an image; what was not here before has not moved, for people."""
    result: str = image["result"]
    return "new" if result == "moved" and image.get("old") is None else result


def _bytes(image: dict[str, Any]) -> str:
    fetched, held = image["bytes_fetched"], image["bytes_held"]
    return f", {format_bytes(fetched)} fetched, {format_bytes(held)} were already here" if fetched or held else ""
