"""The command `search`, which finds repositories that a running mirror holds."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import urlencode

import typer

from mirror.cli.client import AdminClient
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.text import show, table, width

_MAX_RESULTS = 100


def search(
    term: Annotated[str, typer.Argument(help="A part of the name, in any case: `ngin`, `ghcr.io/owner`.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find repositories that are held, by a part of their name. Exits with 1 if there is none."""
    query = urlencode({"q": term, "n": _MAX_RESULTS})
    found = AdminClient(config, url, token_file).request("GET", f"/api/v1/search?{query}")
    results = found["results"]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not results:
        typer.echo(f"nothing is held whose name contains {term}", err=True)
    else:
        show(table([(one["name"], str(one["tags"])) for one in results], width(), ("repository", "tags")))
        if found["count"] > len(results):
            typer.echo(f"and {found['count'] - len(results)} more: a longer part of the name finds fewer")
    if not results:
        raise typer.Exit(1)
