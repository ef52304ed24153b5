"""Texts of the commands for people: tables that fit the terminal, and times."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mirror.core.units import about

# Of a log, or a pipe into another command: lines there are not folded.
_WIDTH_OF_A_FILE = 200


def width() -> int:
    """Return the columns that a line may have."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH_OF_A_FILE


def ago(when: float | None) -> str:
    """Return how long ago a time was."""
    return "never" if not when else f"{about(time.time() - when)} ago"


def until(when: float) -> str:
    """Return how long it is until a time."""
    return f"in {about(when - time.time())}"


def facts(rows: Iterable[tuple[str, str]], columns: int) -> list[str]:
    """Return names and values as lines; a long value is folded and indented."""
    kept = [(name, value) for name, value in rows if value]
    indent = max((len(name) for name, _ in kept), default=0) + 2
    lines = []
    for name, value in kept:
        space = max(20, columns - indent)
        folded = textwrap.wrap(value, space, break_on_hyphens=False) or [""]
        lines.append(f"{name:<{indent}}{folded[0]}")
        lines += [" " * indent + line for line in folded[1:]]
    return lines


def table(rows: Iterable[Sequence[str]], columns: int, headings: Sequence[str] = ()) -> list[str]:
    """Return rows as lines of aligned columns; cells are folded where the space is short, so that nothing is cut."""
    laid_out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(headings))
    for heading in headings:
        laid_out.add_column(heading, overflow="fold")
    for row in rows:
        # As Text: a name may contain what rich takes for markup.
        laid_out.add_row(*(Text(cell, overflow="fold") for cell in row))
    console = Console(width=columns, color_system=None)
    with console.capture() as captured:
        console.print(laid_out)
    return [line.rstrip() for line in captured.get().splitlines()] if laid_out.row_count else []


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        typer.echo(line)
