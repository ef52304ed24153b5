"""Tables for people: nothing is cut, and no line ends in blanks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wide enough for any name, where nobody's screen is the limit.
_FILE_COLUMNS = 400


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. On a terminal, long cells are folded to its width; in a file each row is a line."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # A name may contain what rich takes for markup.
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _FILE_COLUMNS
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())
