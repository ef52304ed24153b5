"""What operators are told of the nodes of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError

if TYPE_CHECKING:
    from mirror.cluster.node import ClusterNode


async def node_figures(node: ClusterNode) -> dict[str, Any]:
    """Return the nodes that have beaten lately, by name; none while Redis does not answer, and why."""
    try:
        members = await node.members.list()
    except MirrorError as error:
        return {"redis": "alone", "cause": str(error), "nodes": []}
    found = [{"name": one.name, **one.facts, "self": one.name == node.name} for one in members]
    return {"redis": "up", "cause": None, "nodes": found}


async def with_nodes(status: dict[str, Any], node: ClusterNode | None) -> dict[str, Any]:
    """Return the figures of the status screen with those of the cluster; None in their place without one."""
    return {**status, "cluster": None if node is None else await node_figures(node)}
