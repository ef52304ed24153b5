"""The commands `serve` and `check-config`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mirror.cli.options import ConfigOption
from mirror.cli.problems import refuse
from mirror.cli.text import show, table, width
from mirror.config.model import find, load
from mirror.errors import ConfigurationError
from mirror.service import checks
from mirror.service.run import run


def serve(config: ConfigOption = None) -> None:
    """Serve until SIGTERM. SIGHUP reloads the configuration.

    Without a configuration it mirrors Docker Hub on 127.0.0.1:5000, with its store in ./cache.
    """
    try:
        run(config)
    except ConfigurationError as error:
        refuse(error.problems)


def check_config(
    file: Annotated[Path | None, typer.Argument(help="The file to check. Without it: the one that serve would use.")] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask each upstream with its account; check disk, ports, certificates, clock.")
    ] = False,
) -> None:
    """Check a configuration file. Each mistake is named by its key, and the exit status is 2.

    With --probe the exit status is 1 if something does not work that the configuration names.
    """
    path = find(file)
    try:
        config = load(path)
    except ConfigurationError as error:
        refuse(error.problems)
    typer.echo(f"{path or 'built-in defaults'}: no mistakes found")
    for hint in config.hints():
        typer.echo(f"note: {hint}")
    if probe:
        results = asyncio.run(checks.probe(config))
        show(table([("ok" if check.ok else "FAILED", check.name, check.text) for check in results], width()))
        raise typer.Exit(0 if all(check.ok for check in results) else 1)
