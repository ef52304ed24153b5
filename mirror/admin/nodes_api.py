"""The handler of the admin address for the nodes of the cluster."""

from __future__ import annotations

from aiohttp import web

from mirror.admin.cluster_nodes import node_figures
from mirror.admin.openapi import Operation, describe
from mirror.admin.operations import AdminOperations
from mirror.admin.schemas import NODES


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
        return web.json_response(await node_figures(node))
