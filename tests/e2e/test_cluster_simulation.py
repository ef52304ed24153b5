"""The simulation of many nodes that start one new image, with few of them."""

import pytest

from bench.cluster_nodes import LAYERS, Plan, Start, redis

pytestmark = pytest.mark.e2e


async def test_each_byte_comes_from_upstream_once():
    """Nobody sends a blob to more nodes than it may, the tree is no deeper than need be, and a seed gives the same times."""
    plan = Plan(nodes=40, fan_out=3, zones=2, link=1e9, upstream=1e8, spread_s=1.0)
    async with redis() as link:
        starts = [Start(plan, link) for _ in range(2)]
        for start in starts:
            await start.run()
    first, again = starts
    assert first.upstream_share == 1.0
    # The tree of its zone, and that of the first nodes of zones.
    assert first.children <= 2 * plan.fan_out
    assert first.depth <= 6
    assert first.asked == plan.nodes * len(LAYERS)
    assert first.times == again.times
    assert first.times[-1] < 2 * sum(LAYERS) / plan.upstream
