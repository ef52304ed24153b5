"""Hit, join or start is one decision: nothing else runs between the look into the store and the start of a download."""

import inspect

from mirror.cache.blobs import Blobs
from mirror.download.downloads import Downloads


def test_decision_has_no_await():
    for step in (Blobs._hit_join_or_start, Downloads.find, Downloads.refuse_failing, Downloads.start):
        assert not inspect.iscoroutinefunction(step)
        assert not inspect.isgeneratorfunction(step)
