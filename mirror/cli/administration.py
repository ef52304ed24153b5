"""The commands `images` and `purge`, which ask a running mirror."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from mirror.cli.client import AdminClient
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.problems import refuse
from mirror.cli.text import show, table, width
from mirror.core.names import is_glob
from mirror.core.units import format_bytes, format_duration


class Order(StrEnum):
    """What `images` sorts by."""

    NAME = "name"
    SIZE = "size"
    PULLED = "pulled"


_KEYS: dict[Order, Callable[[dict[str, Any]], Any]] = {
    Order.NAME: lambda image: image["name"],
    Order.SIZE: lambda image: -image["bytes"],
    Order.PULLED: lambda image: image["pulled"],
}


def images(
    match: Annotated[str, typer.Argument(help="Which images: `nginx`, `library/*:1.*`, `*/*:latest`. All if left out.")] = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    sort: Annotated[Order, typer.Option(help="By name, by size or by the last pull; the largest or oldest first.")] = Order.NAME,
) -> None:
    """List the cached images: each tag or digest with its size, its last pull, and whether it is complete.

    The size of an image is that of all its content; what two images share counts in each, and once in the store (`status`).
    """
    admin = AdminClient(config, url, token_file)
    found: list[dict[str, Any]] = []
    registries: list[dict[str, Any]] = []
    last: str | None = None
    while True:
        query = {**({"match": match} if match else {}), **({"last": last} if last else {})}
        page = admin.request("GET", f"/api/v1/images?{urlencode(query)}")
        found += page["images"]
        last, registries = page["next"], page["registries"]
        if last is None:
            break
    found.sort(key=_KEYS[sort])
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    show(table(map(_row, found), width(), ("image", "size", "pulled", "")))
    for registry in registries:
        if registry["images"]:
            limit = f" of {format_bytes(registry['max_size'])}" if registry["max_size"] else ""
            size, stored = format_bytes(registry["bytes"]), format_bytes(registry["stored"])
            typer.echo(f"{registry['registry']}: {registry['images']} images, {size}; it takes {stored}{limit} in the store")
    typer.echo(f"{len(found)} images")


def _row(image: dict[str, Any]) -> tuple[str, ...]:
    age = format_duration(max(0, round(time.time() - image["pulled"])))
    return image["name"], format_bytes(image["bytes"]), f"{age} ago", "" if image["complete"] else "partial"


def purge(
    image: Annotated[list[str], typer.Argument(help="Which images: `nginx:1.25`, `library/*`, `ghcr.io/owner/app@sha256:…`.")],
    older_than: Annotated[str | None, typer.Option(help="Only images without a pull for this time, for example 30d.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Keep the images, but check them upstream at the next pull.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="In a cluster: wait for the other nodes, a minute at most.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove images from the mirror, and from the other nodes of its cluster. Content that other images need stays.

    Running pulls finish. On a terminal it lists the images and asks for confirmation. The exit status is 1 if an image that is
    named without a glob is not held, or if another node was not told, has failed, or, with --wait, has not reported.
    """
    admin = AdminClient(config, url, token_file)
    order = {"soft": soft, **({"older_than": older_than} if older_than else {})}
    asks = sys.stdin.isatty() and sys.stdout.isatty() and not (yes or soft or dry_run or as_json)
    if asks and not _confirmed(_purge(admin, image, {**order, "dry_run": True})):
        typer.echo("nothing was removed")
        raise typer.Exit(1)
    results = _purge(admin, image, {**order, "dry_run": dry_run, "wait": wait})
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        _report(results, "would go" if dry_run else "to be revalidated" if soft else "purged", named=not asks)
    _refuse_unpurged(results, waited=wait)
    missing = [result["match"] for result in results if not _is_held(result) and not older_than and not is_glob(result["match"])]
    if missing:
        refuse([f"{name} is not held" for name in missing], 1)


def _purge(admin: AdminClient, names: list[str], order: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"match": name, **admin.request("POST", "/api/v1/purge", {"match": name, **order})} for name in names]


def _confirmed(results: list[dict[str, Any]]) -> bool:
    """List what would go, and ask; True without a question if it is nothing."""
    images = sorted({image for result in results for image in result["images"]})
    if not images:
        return True
    _report(results, "would go", named=True)
    return typer.confirm(f"Remove {len(images)} images?")


def _report(results: list[dict[str, Any]], done: str, *, named: bool) -> None:
    for result in results:
        for image in result["images"] if named else ():
            typer.echo(f"  {image}")
        counts = f"{result['tags']} tags, {result['manifests']} manifests, {result['blobs']} blobs"
        typer.echo(f"{result['match']}: {counts}, {format_bytes(result['bytes'])} {done}")
        for node in result.get("nodes", [])[1:]:
            typer.echo(f"  {node['name']}: {_by_node(node, done)}")


def _is_held(result: dict[str, Any]) -> bool:
    """Whether a node has, or had, what a pattern names."""
    return bool(result["images"]) or any(node.get("tags") or node.get("manifests") for node in result.get("nodes", []))


def _by_node(node: dict[str, Any], done: str) -> str:
    """What a node has done, in words."""
    if node["state"] == "purged":
        return f"{node['tags']} tags, {node['manifests']} manifests, {node['blobs']} blobs, {format_bytes(node['bytes'])} {done}"
    return "told, has not reported yet" if node["state"] == "told" else f"failed: {node['cause']}"


def _refuse_unpurged(results: list[dict[str, Any]], *, waited: bool) -> None:
    """Exit with the problem if not all nodes have purged, as far as they were waited for."""
    problems = dict.fromkeys(result["untold"] for result in results if result.get("untold"))
    for node in (node for result in results for node in result.get("nodes", [])):
        if node["state"] == "failed" or (waited and node["state"] == "told"):
            problems[f"{node['name']}: {_by_node(node, '')}"] = None
    if problems:
        refuse(list(problems), 1)
