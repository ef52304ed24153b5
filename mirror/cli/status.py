"""The command `status`: the state of a mirror on one screen."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from mirror.cli.client import AdminClient
from mirror.cli.nodes import node_rows
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.text import ago, facts, show, table, until, width
from mirror.core.units import format_bytes

_SHOWN_TROUBLES = 5
_SHOWN_DOWNLOADS = 10
_SHOWN_HELD_BACK = 20
_SHOWN_NODES = 20


def status(
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if the mirror is not ready or an upstream is down.")
    ] = False,
) -> None:
    """Show the state of a running mirror: store, pulls, upstreams, downloads, and what failed last."""
    admin = AdminClient(config, url, token_file)
    found = admin.request("GET", "/api/v1/status")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(screen(found, width()))
    if check and not (found["ready"] and all(upstream["up"] for upstream in found["upstreams"])):
        raise typer.Exit(1)


def screen(found: dict[str, Any], columns: int) -> list[str]:
    """Return the lines of the screen, none longer than that where it can be folded."""
    lines = facts(_facts(found), columns)
    for title, rows in (
        ("registries", _registries(found["registries"])),
        ("upstreams", _upstreams(found["upstreams"], found["offline"])),
        ("nodes", node_rows(found["cluster"]["nodes"][:_SHOWN_NODES]) if found.get("cluster") else []),
        ("held back", _held_back(found["held_back"])),
        ("failed last", _troubles(found["troubles"])),
        ("downloads", _downloads(found["downloads"])),
    ):
        lines += ["", f"{title}:", *(f"  {line}" for line in table(rows, columns - 2))] if rows else []
    return lines


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    requests, sync = found["requests"], found["sync"]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in requests["outcomes"].items())
    errors = f", {requests['errors']} failed" if requests["errors"] else ""
    last, following = sync["last"], sync["next_run"]
    return [
        ("mirror", f"{_readiness(found)}, version {found['version']}"),
        *((name, f"FAILED: {check['text']}") for name, check in found["checks"].items() if _is_shown(name, check)),
        ("store", _store(found["store"])),
        *([] if found["objects"] is None else [("bucket", _bucket(found["objects"]))]),
        ("pulls", f"{_ratio(requests)}{errors} since the start" if requests["pulls"] or errors else "none since the start"),
        ("", outcomes),
        *([] if found.get("cluster") is None else [("cluster", _cluster(found["cluster"]))]),
        (
            "bytes",
            f"{format_bytes(requests['served_bytes'])} to clients, {format_bytes(requests['upstream_bytes'])} from upstreams",
        ),
        ("sync", ", ".join(part for part in (_sync(last), f"next {until(following)}" if following else "") if part)),
    ]


def _is_shown(name: str, check: dict[str, Any]) -> bool:
    # The first line tells of accounts, since pulls depend on them.
    return not check["ok"] and not name.startswith("account.")


def _cluster(cluster: dict[str, Any]) -> str:
    if cluster["redis"] != "up":
        return f"ALONE: {cluster['cause']}"
    nodes = cluster["nodes"]
    others = sum(node.get("state") == "draining" for node in nodes)
    return f"{len(nodes)} nodes" + (f", {others} of them draining" if others else "")


def _readiness(found: dict[str, Any]) -> str:
    problems = [
        *(["it is stopping"] if found["draining"] else []),
        *([] if found["store_writable"] else ["the store cannot be written"]),
        *(f"{name}: {text}" for name, text in found["credentials"].items()),
        *(f"{name}: {text}" for name, text in found["files"].items()),
    ]
    state = "ready" if found["ready"] else "NOT READY"
    return f"{state} ({'; '.join(problems)})" if problems else state


def _store(store: dict[str, Any]) -> str:
    limit = f" of {format_bytes(store['max_size'])}" if store["max_size"] else ""
    available = store["free"] or 0
    low = ": pulls may bypass the store" if available < store["min_free"] else ""
    free = f"{format_bytes(available)} free on the disk, {format_bytes(store['min_free'])} kept free{low}"
    return f"{format_bytes(store['bytes'] or 0)}{limit} in {store['blobs']} blobs; {free}"


def _bucket(bucket: dict[str, Any]) -> str:
    owed = f", {bucket['owed']} uploads owed" if bucket["owed"] else ""
    if not bucket["up"]:
        return f"DOWN: {bucket['problem'] or 'it does not answer'}{owed}"
    return f"{_part(bucket['bytes'] or 0, bucket['max_size'] or 0)}{owed}"


def _registries(registries: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the registries; none if there is only one, without a limit: the store says it all."""
    if len(registries) == 1 and not registries[0]["max_size"]:
        return []
    return [
        (
            one["registry"],
            f"{_part(one['bytes'], one['max_size'])} in {one['blobs']} blobs",
        )
        for one in registries
    ]


def _part(size: int, limit: int) -> str:
    return f"{format_bytes(size)} of {format_bytes(limit)}" if limit else format_bytes(size)


def _ratio(requests: dict[str, Any]) -> str:
    if requests["hit_ratio"] is None:
        return "none answered"
    return f"{requests['hit_ratio']:.0%} of {requests['pulls']} answered from the store"


def _sync(last: dict[str, Any] | None) -> str:
    return f"{last['result']}, {ago(last['ended'])}" if last else ""


def _upstreams(upstreams: list[dict[str, Any]], offline: list[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(registry, "offline", "no upstream is asked") for registry in offline]
    for upstream in upstreams:
        left, limit = upstream["pulls_left"], upstream["pull_limit"]
        pulls = "" if left is None else f", {left}{'' if limit is None else f' of {limit}'} pulls left"
        rows.append((upstream["registry"], "up" if upstream["up"] else "DOWN", f"{upstream['name']}: {upstream['state']}{pulls}"))
    return rows


def _downloads(downloads: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for download in sorted(downloads, key=lambda entry: -int(entry["readers"]))[:_SHOWN_DOWNLOADS]:
        size, digest = download["size"], _short(download["digest"])
        share = f"{download['bytes'] / size:4.0%} of {format_bytes(size)}" if size else format_bytes(download["bytes"])
        rate = download.get("bytes_per_second")
        speed = "" if rate is None else f"{format_bytes(rate)}/s"
        rows.append((digest, share, speed, f"{download['readers']} readers", download.get("image") or ""))
    more = len(downloads) - len(rows)
    return [*rows, ("", "", "", "", f"and {more} more")] if more > 0 else rows


def _held_back(held: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (one["image"], _short(one["new"]), until(one["until"]) if one["until"] else "until it is released")
        for one in held["tags"][:_SHOWN_HELD_BACK]
    ]
    more = held["count"] - len(rows)
    return [*rows, (f"and {more} more", "", "")] if more > 0 else rows


def _short(digest: str) -> str:
    return digest.rpartition(":")[2][:12]


def _troubles(troubles: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (ago(trouble["time"]), f"{trouble['times']} x", trouble["outcome"], f"{trouble['image']}: {trouble['cause']}")
        for trouble in troubles[:_SHOWN_TROUBLES]
    ]
