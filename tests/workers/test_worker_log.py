"""The log of several processes: who has written a line."""

from tests.support.names import APP, TAG
from tests.workers.cluster import Cluster


async def test_lines_name_their_worker(hub, tmp_path):
    """Each request is one line of the worker that has answered it, and no line is mixed with another."""
    hub.add_image(APP, "1")
    async with Cluster(hub, tmp_path, log={"format": "json", "access": "all"}) as cluster:
        for worker in cluster.workers():
            for _ in range(3):
                await (await cluster.pull(TAG, worker)).rest()
        await cluster.logged('"event": "request"', 6)
        cluster.signal()
        await cluster.ended()
    requests = [event for event in cluster.events() if event["event"] == "request"]
    assert sorted(event["worker"] for event in requests) == [0, 0, 0, 1, 1, 1]
    assert {(event["repository"], event["reference"], event["status"]) for event in requests} == {(APP, "1", 200)}
    assert len({event["request"] for event in requests}) == 6
