"""The command `explain`, which asks a running mirror about one image."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from mirror.cli.client import AdminClient
from mirror.cli.options import ConfigOption, JsonOption, TokenOption, UrlOption
from mirror.cli.text import ago, facts, show, table, until, width
from mirror.core.units import about, format_bytes, format_duration

_HELD = {"complete": "complete", "partial": "in part", "no": "no"}
# Of a digest: enough to find it.
_SHOWN_DIGITS = 12


def explain(
    image: Annotated[str, typer.Argument(help="The image: `nginx:1.27`, `ghcr.io/owner/app@sha256:…`.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the mirror holds of an image, which rules apply to it, and what a pull would do now. Nothing is fetched."""
    admin = AdminClient(config, url, token_file)
    found = admin.request("GET", f"/api/v1/explain?{urlencode({'image': image})}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    columns = width()
    typer.echo(found["image"])
    show(f"  {line}" for line in facts(_facts(found), columns - 2))
    for manifest in found["platforms"]:
        typer.echo("")
        show(_platform(manifest, columns))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    pull, last, tag, sync = found["pull"], found["last"], found["tag"] or {}, found["sync"]
    rows = [
        ("held", _HELD[found["held"]]),
        ("digest", found["digest"] or "not known"),
        ("a pull now", f"{pull['outcome'] or 'refused'}: {pull['why']}"),
        ("in an outage", f"served stale for another {about(pull['stale_until'] - time.time())}" if pull["stale_until"] else ""),
        ("checked", _checked(tag)),
        ("changed", ago(tag["changed"]) if tag.get("changed") else ""),
        ("ttl", f"{_lifetime(tag['ttl'])}, by {tag['ttl_rule']}" if tag else ""),
        ("moves", _moves(tag["hold_rule"]) if tag.get("hold_rule") else ""),
        ("held back", _held_back(tag["held_back"]) if tag.get("held_back") else ""),
        ("policy", found["policy"]),
        ("signatures", _trust(found["trust"]) if found["trust"] else ""),
        ("bucket", _bucket(found["objects"]) if found["objects"] else ""),
        ("evicted", "last, because it is pinned" if tag.get("pinned") or sync["kept"] else ""),
        ("pulled", ago(found["pulled"])),
        ("last answer", _answer(last) if last else ""),
        ("last miss", _miss(found["miss"]) if found["miss"] else ""),
        ("last sync", f"{sync['last']['result'].replace('_', ' ')}, {ago(sync['last']['time'])}" if sync["last"] else ""),
    ]
    return rows + [("upstream", _upstream(upstream)) for upstream in found["upstreams"]]


def _lifetime(seconds: float | None) -> str:
    return "it does not expire" if seconds is None else format_duration(seconds)


def _checked(tag: dict[str, Any]) -> str:
    if not tag.get("checked"):
        return ""
    never = "not again while it is offline" if tag["ttl"] is None else "next at the next pull"
    following = f"next {until(tag['fresh_until'])}" if tag["fresh_until"] else never
    return f"{ago(tag['checked'])}, {following}" + (", upstream has denied it since" if tag["denied"] else "")


def _moves(rule: dict[str, Any]) -> str:
    new = "; a tag or digest that was never seen here is refused until then" if rule["cooldown_new"] == "refuse" else ""
    cooldown = f"followed {format_duration(rule['cooldown'])} after the new digest was first seen here{new}"
    return "never followed: the tag is frozen" if rule["freeze"] else cooldown


def _held_back(held: dict[str, Any]) -> str:
    if held["until"] is None:
        return f"{held['digest']}, until it is released: the tag is frozen"
    return f"{held['digest']}, for another {about(held['until'] - time.time())}: it has to cool down"


def _trust(trust: dict[str, Any]) -> str:
    """What a rule says of the signatures, as `signed: by key release.pub, 5 minutes ago (trust: library/*)`."""
    verdict = f"{trust['result']}: {trust['why']}, {ago(trust['reached'])}" if trust["result"] else "not judged yet"
    return f"{verdict} ({trust['rule']}{', warns only' if trust['mode'] == 'warn' else ''})"


def _bucket(bucket: dict[str, Any]) -> str:
    """What the bucket has, as `complete, 12.3 MiB in 5 objects, the tag was checked 5 minutes ago`."""
    objects = bucket["manifests"] + bucket["blobs"]
    tag = f"; its tag was checked {ago(bucket['tag']['checked'])}" if bucket["tag"] else ""
    if bucket["problem"]:
        return f"not known: {bucket['problem']}"
    if not objects:
        return f"nothing of it{tag}"
    missing = len(bucket["missing"])
    state = f"in part, {missing} blobs missing" if missing else "complete"
    return f"{state}, {format_bytes(bucket['bytes'])} in {objects} objects{tag}"


def _answer(last: dict[str, Any]) -> str:
    return f"{last['outcome']}, {ago(last['when'])}" + (f": {last['cause']}" if last["cause"] else "")


def _miss(miss: dict[str, Any]) -> str:
    since = f", {ago(miss['since'])}" if miss["since"] else ""
    return f"{ago(miss['when'])}: {miss['text']}{since}"


def _upstream(upstream: dict[str, Any]) -> str:
    pulls = "" if upstream["pulls_left"] is None else f", {upstream['pulls_left']} pulls left"
    return f"{upstream['name']}: {upstream['state']}{pulls}" + (", asked first" if upstream["next"] else "")


def _platform(manifest: dict[str, Any], columns: int) -> list[str]:
    name = manifest["platform"] or "manifest"
    if not manifest["held"]:
        return [f"{name}: not held"]
    total = f"{format_bytes(manifest['bytes'])} of {format_bytes(manifest['size'])}"
    rows = [
        ("  " + blob["state"], format_bytes(blob["size"]), _short(blob["digest"]), blob["media_type"].rpartition(".image.")[2])
        for blob in manifest["blobs"]
    ]
    return [
        f"{name}: {'complete' if manifest['complete'] else 'in part'}, {total}, {_short(manifest['digest'])}",
        *table(rows, columns),
    ]


def _short(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}:{digits[:_SHOWN_DIGITS]}"
