"""Shows how many bytes have been transferred: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mirror.core.units import format_bytes

# How often a log gets a line.
_LINE_INTERVAL_S: Final = 10.0

Show: TypeAlias = Callable[[str, int, int | None], None]
"""Shows what is transferred, its bytes so far, and all of its bytes, None if they are not known."""


@contextlib.contextmanager
def byte_progress(*, quiet: bool) -> Iterator[Show]:
    """Show progress on standard error inside the context."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        text, amount = TextColumn("{task.description}", markup=False), DownloadColumn(binary_units=True)
        columns = (text, BarColumn(), amount, TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Bar(bars)
    else:
        yield _Lines()


class _Bar:
    """One bar; it begins anew with what is transferred."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None)
        self._text: str | None = None

    def __call__(self, text: str, done: int, total: int | None) -> None:
        if text != self._text:
            self._text = text
            self._bars.reset(self._task, description=text)
        self._bars.update(self._task, completed=done, total=total or None)


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str, done: int, total: int | None) -> None:
        if time.monotonic() - self._last >= _LINE_INTERVAL_S:
            self._last = time.monotonic()
            typer.echo(f"{text}: {format_bytes(done)}{f' of {format_bytes(total)}' if total else ''}", err=True)
