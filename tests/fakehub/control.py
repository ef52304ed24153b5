"""The fake's remote control: JSON over HTTP, for tests and benchmarks that run it in a process of its own."""

import random
from dataclasses import fields
from typing import Any

from aiohttp import web

from . import faults, header_faults
from .catalog import Blob, layer
from .faults import Fault, Gate, NoHeaders
from .hub import FakeHub
from .ledger import Seen
from .script import Entry, Rule
from .settings import Settings

FAULTS: dict[str, type[Fault]] = {
    name: value
    for module in (faults, header_faults)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Fault)
}


def describe(hub: FakeHub) -> dict[str, Any]:
    """Where the hub is, how it is set and what it has done."""
    return {
        "url": hub.url,
        "token_host": hub.token_host,
        "cdn_host": hub.cdn_host,
        "settings": {field.name: getattr(hub, field.name) for field in fields(Settings)},
        "requests": len(hub.requests),
        "bytes_sent": hub.bytes_sent(),
        "active": hub.active,
        "peak": hub.peak,
        "accepted": hub.accepted,
        "errors": hub.errors,
    }


def add_image(hub: FakeHub, wanted: dict[str, Any]) -> dict[str, Any]:
    """Add an image. Each of its layers is one of

    `{"size": 1000, "seed": 1}`: pseudo-random bytes, any size, no tar;
    `{"files": {"name": "text"}}`: a gzipped tar;
    `{"tar_size": 1000, "seed": 1}`: a gzipped tar of one file of that size.
    """
    layers = [_layer(hub, wanted["repository"], one) for one in wanted["layers"]] if "layers" in wanted else None
    image = hub.add_image(wanted["repository"], wanted.get("tag"), layers, wanted.get("platforms"), wanted.get("docker", False))
    return {
        "digest": image.digest,
        "config": image.config.digest,
        "layers": [{"digest": blob.digest, "size": blob.size} for blob in image.layers],
        "children": {platform: child.digest for platform, child in image.children.items()},
    }


def _layer(hub: FakeHub, repository: str, wanted: dict[str, Any]) -> bytes | Blob:
    if "files" in wanted:
        return layer({name: text.encode() for name, text in wanted["files"].items()})
    if "tar_size" in wanted:
        return layer({"data": random.Random(wanted.get("seed", 0)).randbytes(wanted["tar_size"])})
    return hub.add_synthetic_blob(repository, wanted["size"], wanted.get("seed", 0))


class Control:
    """One handler for each thing that can be asked."""

    def __init__(self, hub: FakeHub) -> None:
        self._hub = hub
        self._entries: list[Entry] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self.state),
                web.get("/requests", self.requests),
                web.get("/count", self.count),
                web.post("/reset", self.reset),
                web.post("/settings", self.settings),
                web.post("/advance", self.advance),
                web.post("/start", self.start),
                web.post("/stop", self.stop),
                web.post("/images", self.images),
                web.post("/tags", self.tags),
                web.post("/script", self.script),
                web.delete("/script", self.clear),
                web.get("/script/{id}", self.entry),
                web.delete("/script/{id}", self.remove),
                web.post("/script/{id}/release", self.release),
                web.post("/script/{id}/advance", self.advance_gate),
            ]
        )
        return app

    async def state(self, _: web.Request) -> web.Response:
        return web.json_response(describe(self._hub))

    async def requests(self, request: web.Request) -> web.Response:
        """The requests seen, filtered by the query."""
        return web.json_response([_seen(seen) for seen in self._found(request)])

    async def count(self, request: web.Request) -> web.Response:
        """How many requests agree with the query, and the bytes of their bodies."""
        found = self._found(request)
        sent = sum(seen.body_bytes_sent for seen in found)
        return web.json_response({"count": len(found), "bytes_sent": sent})

    async def reset(self, _: web.Request) -> web.Response:
        self._hub.reset_counters()
        return web.json_response({})

    async def settings(self, request: web.Request) -> web.Response:
        """Change settings by name."""
        known = {field.name for field in fields(Settings)}
        wanted = await request.json()
        if unknown := set(wanted) - known:
            raise web.HTTPBadRequest(text=f"unknown settings: {sorted(unknown)}; known: {sorted(known)}")
        for name, value in wanted.items():
            setattr(self._hub, name, value)
        return web.json_response(describe(self._hub)["settings"])

    async def advance(self, request: web.Request) -> web.Response:
        self._hub.advance((await request.json())["seconds"])
        return web.json_response({})

    async def start(self, _: web.Request) -> web.Response:
        await self._hub.start()
        return web.json_response({})

    async def stop(self, _: web.Request) -> web.Response:
        await self._hub.stop()
        return web.json_response({})

    async def images(self, request: web.Request) -> web.Response:
        return web.json_response(add_image(self._hub, await request.json()))

    async def tags(self, request: web.Request) -> web.Response:
        """Move a tag, or delete it when the digest is null."""
        wanted = await request.json()
        if wanted["digest"] is None:
            self._hub.delete_tag(wanted["repository"], wanted["tag"])
        else:
            self._hub.move_tag(wanted["repository"], wanted["tag"], wanted["digest"])
        return web.json_response({})

    async def script(self, request: web.Request) -> web.Response:
        """Add `{"rule": {…}, "faults": [{"fault": "Status", "status": 503}]}`; answers its id."""
        wanted = await request.json()
        try:
            rule = Rule(**wanted.get("rule", {}))
            happening = [FAULTS[one.pop("fault")](**one) for one in wanted["faults"]]
        except (KeyError, TypeError) as bad:
            raise web.HTTPBadRequest(text=f"{bad!r}; faults: {sorted(FAULTS)}") from bad
        self._entries.append(self._hub.script(rule, *happening))
        return web.json_response({"id": len(self._entries) - 1})

    async def clear(self, _: web.Request) -> web.Response:
        self._hub.clear_script()
        return web.json_response({})

    async def entry(self, request: web.Request) -> web.Response:
        """How often it happened, and whether its gates have been reached."""
        entry = self._entry(request)
        reached = [fault.reached.is_set() for fault in entry.faults if isinstance(fault, Gate | NoHeaders)]
        return web.json_response({"used": entry.used, "active": entry.active, "reached": reached})

    async def remove(self, request: web.Request) -> web.Response:
        self._entry(request).remove()
        return web.json_response({})

    async def release(self, request: web.Request) -> web.Response:
        """Let go what is held by the gates, stalls and missing answers of an entry."""
        for fault in self._entry(request).faults:
            if isinstance(fault, Gate | NoHeaders):
                fault.release()
        return web.json_response({})

    async def advance_gate(self, request: web.Request) -> web.Response:
        to = (await request.json())["to"]
        for fault in self._entry(request).faults:
            if isinstance(fault, Gate):
                fault.advance(to)
        return web.json_response({})

    def _entry(self, request: web.Request) -> Entry:
        try:
            return self._entries[int(request.match_info["id"])]
        except (IndexError, ValueError) as bad:
            raise web.HTTPNotFound(text="no such entry") from bad

    def _found(self, request: web.Request) -> list[Seen]:
        wanted: dict[str, Any] = dict(request.query)
        if "status" in wanted:
            wanted["status"] = int(wanted["status"])
        return [seen for seen in self._hub.requests if seen.fits(wanted)]


def _seen(seen: Seen) -> dict[str, Any]:
    # `asdict` would copy the headers' proxy, which cannot be done.
    values = {field.name: getattr(seen, field.name) for field in fields(seen) if field.name != "headers"}
    return values | {"headers": list(seen.headers.items()), "range": seen.range}
