"""How the commands report problems."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import typer


def refuse(problems: Iterable[str], status: int = 2) -> NoReturn:
    """Print each problem on its own line to standard error, and exit."""
    for problem in problems:
        typer.echo(f"registry-mirror: {problem}", err=True)
    raise typer.Exit(status)
