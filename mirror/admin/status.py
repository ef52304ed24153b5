"""The figures of the status screen, taken from the metrics so that both always agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import Sample
from prometheus_client.parser import text_string_to_metric_families

_PREFIX = "registry_mirror_"
# Answers whose bytes came from the store.
_FROM_STORE = frozenset({"HIT", "REVALIDATED", "STALE"})
_PULLS = frozenset({"manifest", "blob"})
_FIRST_ERROR = 400


class MetricValues:
    """The samples of a scrape, by name."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name.removeprefix(_PREFIX), []).append(sample)

    def of(self, name: str) -> Iterable[Sample]:
        """Return the samples of a name."""
        return self._samples.get(name, ())

    def sum(self, name: str, **labels: str) -> int:
        """Return the sum of the samples of a name that have these labels."""
        return int(sum(sample.value for sample in self.of(name) if labels.items() <= sample.labels.items()))

    def value(self, name: str, **labels: str) -> int | None:
        """Return the value of a sample; None if there is none."""
        found = (int(sample.value) for sample in self.of(name) if labels.items() <= sample.labels.items())
        return next(found, None)


def request_figures(values: MetricValues) -> dict[str, Any]:
    """Return counts of pulls since the start, by outcome.

    `hits` are the manifests and blobs that came from the store, and `hit_ratio` is their share of all; None before the first one.
    """
    outcomes: Counter[str] = Counter()
    errors = 0
    for sample in values.of("requests_total"):
        if sample.labels["kind"] in _PULLS:
            if int(sample.labels["status"]) < _FIRST_ERROR:
                outcomes[sample.labels["outcome"]] += int(sample.value)
            elif int(sample.labels["status"]) >= 500:
                errors += int(sample.value)
    total, hits = outcomes.total(), sum(outcomes[outcome] for outcome in _FROM_STORE)
    return {
        "pulls": total,
        "outcomes": {outcome: count for outcome, count in outcomes.most_common() if count},
        "errors": errors,
        "hits": hits,
        "hit_ratio": hits / total if total else None,
        "served_bytes": values.sum("served_bytes_total"),
        "upstream_bytes": values.sum("upstream_bytes_total"),
    }


def removal_figures(values: MetricValues) -> dict[str, Any]:
    """Return what was removed from the store since the start: evicted blobs by reason, and the bytes of purges."""
    evicted = {
        reason: {kind: values.sum(f"evicted_{kind}_total", reason=reason) for kind in ("blobs", "bytes")}
        for reason in sorted(sample.labels["reason"] for sample in values.of("evicted_bytes_total"))
    }
    return {"evicted": evicted, "purged_bytes": values.sum("purged_bytes_total")}


def upstream_figures(values: MetricValues, states: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return each upstream with its state and the pulls that are left.

    Args:
        states: for people, by registry and upstream with a blank between them.
    """
    return [
        {
            "registry": registry,
            "name": name,
            "state": state,
            "up": values.value("upstream_up", registry=registry, upstream=name) != 0,
            "pulls_left": values.value("upstream_ratelimit_remaining", registry=registry),
            "pull_limit": values.value("upstream_ratelimit_limit", registry=registry),
        }
        for (registry, _, name), state in ((key.partition(" "), state) for key, state in states.items())
    ]


def bucket_figures(values: MetricValues, problem: str | None) -> dict[str, Any]:
    """Return the figures of the bucket behind the store.

    Args:
        problem: why this process does not ask it; None if it does.
    """
    return {
        "up": bool(values.value("objects_up")),
        "problem": problem,
        "bytes": values.value("objects_bytes"),
        "max_size": values.value("objects_limit_bytes"),
        "owed": values.value("objects_owed"),
        "deleted": {"objects": values.sum("objects_deleted_total"), "bytes": values.sum("objects_deleted_bytes_total")},
    }
