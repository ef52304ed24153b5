"""The graph in use: a reload replaces it, and the old graph is closed when its last user has released it."""

from __future__ import annotations

import asyncio

import structlog

from mirror.service.graph import Graph

log = structlog.get_logger(__name__)

# Longer than a large download or a sync job: a graph that is still in use after that was never released.
_MAX_RETIRED_S = 86400.0


class Current:
    """Holds the current graph, and replaced graphs as long as they are in use.

    A caller reads `graph` anew after each await. Work that needs one graph throughout is counted in its `Graph.in_use`: requests,
    downloads and their readers, image syncs, prefetches, and upstream requests.

    Attributes:
        graph: the current one.
        retired: replaced graphs that are still open.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.retired: set[Graph] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def replace(self, graph: Graph) -> None:
        """Make a started graph the current one, at once; retire the old one, which then starts no work of its own."""
        old, self.graph = self.graph, graph
        self.retired.add(old)
        task = asyncio.get_running_loop().create_task(self._retire(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await old.hand_over()

    async def close(self) -> None:
        """Close all graphs, in use or not."""
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
