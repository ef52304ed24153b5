"""The command `nodes`, which lists the nodes of the cluster of a running mirror."""

from __future__ import annotations

import json
from typing import Any

import typer

from mirror.cli.client import AdminClient
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.text import ago, show, table, width


def nodes(
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the nodes of the cluster."""
    found = AdminClient(config, url, token_file).request("GET", "/api/v1/nodes")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if found["redis"] != "up":
        typer.echo(f"this node is alone: {found['cause']}")
        return
    show(table(node_rows(found["nodes"]), width(), ("  NODE", "STATE", "VERSION", "ZONE", "STARTED", "CLOCK", "OWED")))


def node_rows(nodes: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each node; one of another version may leave something out."""
    return [
        (
            ("* " if node["self"] else "  ") + node["name"],
            str(node.get("state", "")),
            str(node.get("version", "")),
            str(node.get("zone", "")),
            ago(node.get("started")),
            f"{node['clock']:+.1f} s" if "clock" in node else "",
            str(node.get("owed", "")),
        )
        for node in nodes
    ]
