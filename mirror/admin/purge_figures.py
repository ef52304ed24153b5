"""The figures of purges, as the API answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirror.admin.audit import purge_counts

if TYPE_CHECKING:
    from mirror.maintenance.cluster_purge import NodePurge, NodePurges


def figures_by_node(found: NodePurges) -> dict[str, Any]:
    """Return what each node has done about a purge, and why others were not told of it."""
    return {"nodes": [_figures(one) for one in found.nodes], "untold": found.untold}


def _figures(one: NodePurge) -> dict[str, Any]:
    counts = {} if one.result is None else purge_counts(one.result)
    return {"name": one.name, "state": one.state, "cause": one.cause, **counts}
