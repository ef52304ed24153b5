"""A clock for a mirror under test, so that what expires does so without waiting."""

import time

import diskcache


class Clock:
    """Seconds since the epoch; runs like the real one and can be moved on.

    It is put in the place of every clock that judges the age of something: the index's, the pull context's, and those of
    upstreams' health, pull limits, logins, and failures that are remembered.
    """

    def __init__(self, under_test, monkeypatch):
        self.offset = 0.0
        under_test.graph.cache.manifests._context.clock = self
        monkeypatch.setattr(diskcache.core, "time", self)
        graph = under_test.graph
        for registry in graph.registries.values():
            for endpoint in registry.upstreams:
                endpoint.health.clock = endpoint.login.clock = self.monotonic
        by_tag, by_digest = graph.cache.manifests._by_tag, graph.cache.manifests._by_digest
        for flights in (by_tag._checks, by_digest._fetches, graph.cache.listings._requests):
            flights.memory.clock = self.monotonic
        under_test.downloads._failures.clock = self.monotonic

    def __call__(self):
        return time.time() + self.offset

    time = __call__

    def monotonic(self):
        return time.monotonic() + self.offset

    def sleep(self, seconds):
        time.sleep(seconds)

    def advance(self, seconds):
        self.offset += seconds
