"""The graph in use: a reload replaces it, and the old one is closed when its last user has let it go."""

from __future__ import annotations

import asyncio

import structlog

from mirror.service.graph import Graph

log = structlog.get_logger(__name__)

# Longer than a large download or an order takes; who still uses an old graph then would never let it go.
_MAX_RETIRED_S = 86400.0


class Current:
    """Holds the current graph, and those that it has replaced as long as they are used.

    Whoever looks something up takes `graph` and does not keep it across an await. Whoever works with it is counted as one of
    `Graph.in_use`: requests, downloads and their readers, images being brought in sync, prefetches, and questions to upstream.

    Attributes:
        graph: the current one.
        retired: old ones that are still open.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.retired: set[Graph] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def replace(self, graph: Graph) -> None:
        """Start a graph and put it in the place of the current one, which begins nothing more by itself."""
        await graph.start()
        old, self.graph = self.graph, graph
        self.retired.add(old)
        task = asyncio.get_running_loop().create_task(self._retire(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await old.rest()

    async def close(self) -> None:
        """Close all of them, used or not."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for graph in (*self.retired, self.graph):
            await graph.close()
        self.retired.clear()

    async def _retire(self, graph: Graph) -> None:
        graph.stop_background()
        try:
            async with asyncio.timeout(_MAX_RETIRED_S):
                await graph.in_use.unused()
        except TimeoutError:
            log.warning("old_configuration_in_use", users=graph.in_use.users, consequence="its connections are closed")
        await graph.close()
        self.retired.discard(graph)
