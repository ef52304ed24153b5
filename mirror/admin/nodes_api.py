"""The handler of the admin address for the nodes of the cluster."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mirror.admin.openapi import Operation, describe
from mirror.admin.operations import AdminOperations
from mirror.admin.schemas import NODES
from mirror.errors import MirrorError


class NodesApi:
    """The handler."""

    def __init__(self, operations: AdminOperations) -> None:
        self._operations = operations

    def add_to(self, application: web.Application) -> None:
        """Add the route."""
        application.router.add_get("/api/v1/nodes", self.nodes)

    @describe(Operation("The nodes of the cluster.", {200: NODES}, errors=(409,)))
    async def nodes(self, _: web.Request) -> web.Response:
        """Return the nodes that have beaten lately; none while Redis does not answer."""
        node = self._operations.node
        if node is None:
            raise web.HTTPConflict(text="this mirror is no node of a cluster: cluster.redis.url is not configured")
        try:
            members = await node.members.list()
        except MirrorError as error:
            return web.json_response({"redis": "alone", "cause": str(error), "nodes": []})
        found: list[dict[str, Any]] = [{"name": one.name, **one.facts, "self": one.name == node.name} for one in members]
        return web.json_response({"redis": "up", "cause": None, "nodes": found})
