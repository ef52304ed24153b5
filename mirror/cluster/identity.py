"""What a node is called in its cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """This node, as the others know it.

    Attributes:
        name: the URL of its address for other nodes.
        zone: where it is; nodes of the same zone stream from each other first. Empty if the cluster has no zones.
    """

    name: str
    zone: str = ""
