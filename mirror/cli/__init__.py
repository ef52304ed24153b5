"""The command line: `registry-mirror`, the same as `python -m mirror`."""

from __future__ import annotations

from typing import Annotated

import typer

from mirror import __version__
from mirror.cli import administration, serving, syncing, verification
from mirror.cli.client_config import client_config
from mirror.cli.explaining import explain
from mirror.cli.exporting import export
from mirror.cli.importing import import_
from mirror.cli.nodes import nodes
from mirror.cli.releasing import release
from mirror.cli.searching import search
from mirror.cli.status import status

app = typer.Typer(
    help="A pull-through caching mirror for container registries.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"registry-mirror {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """A pull-through caching mirror for container registries."""


app.command()(serving.serve)
app.command()(status)
app.command("check-config")(serving.check_config)
app.command()(administration.images)
app.command()(administration.purge)
app.command()(explain)
app.command()(export)
app.command("import")(import_)
app.command()(nodes)
app.command()(release)
app.command()(search)
app.command()(syncing.sync)
app.command()(syncing.warm)
app.command()(verification.verify)
app.command("client-config")(client_config)


def main() -> None:
    """Run the command."""
    app(prog_name="registry-mirror")
