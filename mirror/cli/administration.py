"""The commands `images` and `purge`, which ask a running mirror."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.table import Table

from mirror.cli.client import AdminClient, TokenOption, UrlOption
from mirror.cli.serving import ConfigOption
from mirror.core.units import format_bytes, format_duration

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def images(
    match: Annotated[str, typer.Argument(help="Which images: `nginx`, `library/*:1.*`, `*/*:latest`. All if left out.")] = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the cached images: each tag or digest with its size, its last pull, and whether it is complete."""
    admin = AdminClient(config, url, token_file)
    found: list[dict[str, Any]] = []
    last: str | None = None
    while True:
        query = {**({"match": match} if match else {}), **({"last": last} if last else {})}
        page = admin.request("GET", f"/api/v1/images?{urlencode(query)}")
        found += page["images"]
        last = page["next"]
        if last is None:
            break
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("image", "size", "pulled", "", box=None, pad_edge=False)
    for image in found:
        age = format_duration(max(0, round(time.time() - image["pulled"])))
        table.add_row(image["name"], format_bytes(image["bytes"]), f"{age} ago", "" if image["complete"] else "partial")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    typer.echo(f"{len(found)} images")


def purge(
    image: Annotated[list[str], typer.Argument(help="Which images: `nginx:1.25`, `library/*`, `ghcr.io/owner/app@sha256:…`.")],
    older_than: Annotated[str | None, typer.Option(help="Only images without a pull for this time, for example 30d.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Keep the images, but check them upstream at the next pull.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove images from the mirror. Content that other images need stays; running pulls finish."""
    admin = AdminClient(config, url, token_file)
    results = []
    for name in image:
        order = {"match": name, "soft": soft, "dry_run": dry_run, **({"older_than": older_than} if older_than else {})}
        results.append({"match": name, **admin.request("POST", "/api/v1/purge", order)})
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    done = "would go" if dry_run else "to be revalidated" if soft else "purged"
    for result in results:
        counts = f"{result['tags']} tags, {result['manifests']} manifests, {result['blobs']} blobs"
        typer.echo(f"{result['match']}: {counts}, {format_bytes(result['bytes'])} {done}")
