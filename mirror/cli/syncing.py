"""The commands `sync` and `warm`, which let a running mirror fetch images."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from mirror.cli.client import AdminClient, Refused
from mirror.cli.from_files import FromOption, images_from
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.problems import refuse
from mirror.cli.text import show, table, width
from mirror.cli.watching import in_words, watch
from mirror.core.units import format_bytes, format_duration
from mirror.image_lists.findings import ListedImage

DetachOption = Annotated[bool, typer.Option("--detach", help="Start it and do not wait for its end.")]

_COMPLETED = "completed"
# For how long an order may be unknown, or nobody answer: behind a load balancer a node may have died, or not know of it yet.
_PATIENCE_S, _POLL_INTERVAL_S = 30.0, 0.5
_WORDS = {"moved": "new or moved", "completed": "now complete", "held_back": "held back"}


def sync(
    image: Annotated[
        list[str] | None,
        typer.Argument(help="Which images: `nginx`, `library/*:1.*`. Without it: all that a scheduled run checks."),
    ] = None,
    files: FromOption = None,
    status: Annotated[bool, typer.Option("--status", help="Print running jobs and the last result of each image.")] = False,
    cancel: Annotated[
        str | None, typer.Option(metavar="ORDER", help="Cancel an order of `sync` or `warm`; --status names them.")
    ] = None,
    detach: DetachOption = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check now whether cached and configured images have moved upstream, and fetch the new ones.

    All nodes of a cluster do so, each one for its own store; any of them tells how far all are. The exit status is 1 if an image
    is not in sync on a node, if a node is lost, or if the other nodes were not told.
    """
    admin = AdminClient(config, url, token_file)
    if status:
        _status(admin, as_json=as_json)
        return
    if cancel is not None:
        _cancel(admin, cancel, as_json=as_json)
        return
    images = [*(image or []), *dict.fromkeys(listed.image for listed in images_from(files or []))]
    given = admin.request("POST", "/api/v1/sync", {"images": images})
    if not _follow(admin, given, detach=detach, as_json=as_json) or given.get("untold"):
        raise typer.Exit(1)


def warm(
    image: Annotated[
        list[str] | None, typer.Argument(help="Images: `nginx:1.27`, `ghcr.io/owner/app@sha256:…`, `nginx:1.27.*`.")
    ] = None,
    files: FromOption = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            help="A platform such as linux/arm64; repeat it for several. By default what the file names, else sync.platforms."
        ),
    ] = None,
    detach: DetachOption = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch images before a client pulls them.

    In a cluster one node does, from which the others have the content; if it dies, another one takes the order over.
    """
    admin = AdminClient(config, url, token_file)
    images = _by_platforms(image or [], images_from(files or []), platform or [])
    if not images:
        refuse(["name an image, or a file with --from"])
    is_complete = True
    for platforms, names in images.items():
        given = admin.request("POST", "/api/v1/warm", {"images": names, "platforms": list(platforms)})
        is_complete &= _follow(admin, given, detach=detach, as_json=as_json)
    if not is_complete:
        raise typer.Exit(1)


def _by_platforms(
    named: Sequence[str], listed: Sequence[ListedImage], platforms: Sequence[str]
) -> dict[tuple[str, ...], list[str]]:
    """The images of each order; an order has one set of platforms.

    Args:
        platforms: of all images, whatever a file says; empty: that of the file.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for image, platform in [*((name, None) for name in named), *((one.image, one.platform) for one in listed)]:
        wanted = tuple(platforms) or (() if platform is None else (str(platform),))
        images = found.setdefault(wanted, [])
        if image not in images:
            images.append(image)
    return found


def _follow(admin: AdminClient, given: dict[str, Any], *, detach: bool, as_json: bool) -> bool:
    """Watch an order until its end, unless it is detached; whether it has not failed."""
    order = given["order"]
    if given.get("untold"):
        typer.echo(given["untold"], err=True)
    if detach:
        typer.echo(json.dumps(given) if as_json else f"ordered: {order}")
        return True
    try:
        done = watch(lambda: _state(admin, order), quiet=as_json)
    except KeyboardInterrupt:
        _exit_interrupted(order)
    if as_json:
        typer.echo(json.dumps(done, indent=2))
    else:
        _report(done)
    return bool(done["result"] == _COMPLETED)


def _state(admin: AdminClient, order: str) -> dict[str, Any]:
    """Return the state of an order; exit with the problem if nobody tells it for too long."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        problem = f"the mirror knows no order {order} any more"
        try:
            state: dict[str, Any] | None = admin.find(f"/api/v1/sync/{quote(order)}")
        except Refused as error:
            state, problem = None, str(error)
            if not error.may_pass:
                refuse([problem], 1)
        if state is not None:
            return state
        if time.monotonic() >= deadline:
            refuse([problem], 1)
        time.sleep(_POLL_INTERVAL_S)


def _exit_interrupted(order: str) -> NoReturn:
    typer.echo("The mirror goes on; `registry-mirror sync --status` tells how far it is,", err=True)
    typer.echo(f"and `registry-mirror sync --cancel {order}` ends it.", err=True)
    raise typer.Exit(130)


def _cancel(admin: AdminClient, order: str, *, as_json: bool) -> None:
    found = admin.request("DELETE", f"/api/v1/sync/{quote(order)}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif found["result"] in ("running", "waiting"):
        typer.echo("it ends as soon as the process that runs it answers")
    else:
        done = sum(found["tags"].values())
        typer.echo(f"{_summary(found)}; {done} of {found['total']} images done. What has arrived is used by the next pull.")


def _report(done: dict[str, Any]) -> None:
    for image, cause in done["problems"].items():
        typer.echo(f"{image}: {cause}", err=True)
    if done.get("cause"):
        typer.echo(done["cause"], err=True)
    nodes = done.get("nodes", [])
    for node in nodes if len(nodes) > 1 else ():
        typer.echo(f"  {node['name']}: {_by_node(node)}")
    typer.echo(_summary(done))


def _by_node(node: dict[str, Any]) -> str:
    """Return what a node has done about an order."""
    return _summary({**node, "result": node["state"]}) if node.get("ended") is not None else node["cause"] or node["state"]


def _summary(done: dict[str, Any]) -> str:
    """Return the summary of a finished job."""
    counts = ", ".join(f"{count} {_WORDS.get(status, status)}" for status, count in sorted(done["tags"].items())) or "no images"
    seconds = format_duration(max(0, round(done["ended"] - done["began"])))
    fetched, held = format_bytes(done["bytes_fetched"]), format_bytes(done["bytes_held"])
    return f"{done['result']} in {seconds}: {counts}; {fetched} fetched, {held} were already here"


def _status(admin: AdminClient, *, as_json: bool) -> None:
    state = admin.request("GET", "/api/v1/sync")
    following = state["next_image"]
    while following is not None:
        more = admin.request("GET", f"/api/v1/sync?last={following}")
        state["images"] += more["images"]
        following = more["next_image"]
    upstreams = admin.request("GET", "/api/v1/status")["upstreams"]
    state["pulls"] = [
        {"registry": one["registry"], "upstream": one["name"], "left": one["pulls_left"], "limit": one["pull_limit"]}
        for one in upstreams
        if one["pulls_left"] is not None
    ]
    if as_json:
        typer.echo(json.dumps({key: value for key, value in state.items() if key != "next_image"}, indent=2))
        return
    _images(state["images"])
    for run in state["running"]:
        done = sum(run["tags"].values())
        typer.echo(f"running: {run['kind']} by {run['by']}, {done} of {run['total']} images done, order {run['name']}{_at(run)}")
    for order in state["waiting"]:
        typer.echo(f"waiting: {order['kind']} by {order['by']}: {_few(order)}, order {order['name']}{_at(order)}")
    _schedule(state)
    for one in state["pulls"]:
        limit = "" if one["limit"] is None else f" of {one['limit']}"
        typer.echo(f"{one['registry']}: {one['left']}{limit} pulls left")


def _at(order: dict[str, Any]) -> str:
    """Return where an order is carried out that is another node's."""
    nodes = order.get("nodes")
    return f", at {', '.join(node['name'] for node in nodes)}" if nodes else ""


def _images(images: list[dict[str, Any]]) -> None:
    if not images:
        typer.echo("no image has been looked at yet")
        return
    show(table(map(_row, images), width(), ("image", "result", "looked at", "fetched", "cause")))


def _row(image: dict[str, Any]) -> tuple[str, ...]:
    fetched = format_bytes(image["bytes_fetched"]) if image["bytes_fetched"] else ""
    return image["image"], in_words(image), _ago(image["time"]), fetched, image["cause"] or ""


def _schedule(state: dict[str, Any]) -> None:
    last = state["last"]["schedule"]
    if last is not None:
        typer.echo(f"last scheduled run, {_ago(last['ended'])}: {_summary(last)}")
    if state["next"] is None:
        typer.echo("no scheduled runs: sync.interval is 0")
    elif not any(run["kind"] == "schedule" for run in state["running"]):
        typer.echo(f"next scheduled run in {format_duration(max(0, round(state['next'] - time.time())))}")


def _ago(when: float) -> str:
    return f"{format_duration(max(0, round(time.time() - when)))} ago"


def _few(order: dict[str, Any]) -> str:
    """Return the names of a job's images, the first ones if there are many."""
    named = ", ".join(order["images"]) or "everything"
    return f"{named} and {order['more']} more" if order["more"] else named
