"""What the nodes of a cluster say together of an upstream that is out of order. Times are milliseconds on the clock of Redis.

The word of one node is not enough while others live: its own network may be broken. One answer that any node gets is enough to
the contrary, so the probes pass from node to node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

WINDOW_MS: Final = 10_000
"""Failures of several nodes count together within this time, and an answer outweighs failures for so long."""

PROBE_MS: Final = 15_000
"""A probe takes less. After this time another process probes, because the one whose turn it was has died."""

TTL_MS: Final = 900_000
"""What nobody has changed for so long is forgotten. Pauses and probes are much shorter."""

_FIRST_PAUSE_MS: Final = 1_000
_MAX_PAUSE_MS: Final = 30_000
# How much later a node may probe than one whose word is not known yet.
_COURTESY_MS: Final = 1_000
_MAX_NAMES: Final = 16
_MAX_NAME: Final = 300
_MAX_TEXT: Final = 64 << 10
_MAX_TIME_MS: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class SharedBreaker:
    """The breaker of one kind of request to one upstream, as all nodes see it.

    Attributes:
        failures: when each node has met its last grave failure, of those that count.
        answers: when each node has got an answer that closed the breaker.
        since: the first of the failures that have opened it; 0 if it is closed.
        pause: between the last two probes.
        until: when the next probe may begin, or when the one under way is given up.
        prober: the process that probes; empty between probes.
    """

    failures: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    since: int = 0
    pause: int = 0
    until: int = 0
    prober: str = ""

    @property
    def is_open(self) -> bool:
        """Whether no node may ask, but to probe."""
        return self.since > 0

    def failed(self, node: str, when: int, now: int, living: int) -> SharedBreaker:
        """Note a grave failure. Two nodes open the breaker, or the only one of `living`."""
        failures = _recent({**self.failures, node: when}, now)
        if self.is_open or node not in failures:
            return self
        answers = {name: answer for name, answer in _recent(self.answers, now).items() if name != node or answer > when}
        noted = SharedBreaker(_newest(failures), answers)
        if answers or len(failures) < min(2, max(1, living)):
            return noted
        first = min(failures.values())
        return replace(noted, since=first, pause=_FIRST_PAUSE_MS, until=now + _FIRST_PAUSE_MS)

    def answered(self, node: str, when: int) -> SharedBreaker:
        """Note an answer to a request. It closes the breaker, unless it came before the failures."""
        if self.is_open:
            return self.probe_answered(node, when) if when > self.since else self
        failed = self.failures.get(node)
        if failed is None or failed > when:
            return self
        return replace(self, failures={name: time for name, time in self.failures.items() if name != node})

    def claimed(self, process: str, now: int) -> SharedBreaker:
        """Give a process the turn to probe, if the breaker is open and nobody else has it; `prober` tells."""
        if not self.is_open or (self.next_turn(now) > now and self.prober != process):
            return self
        return replace(self, prober=process, until=now + PROBE_MS)

    def probe_answered(self, node: str, when: int) -> SharedBreaker:
        """Close the breaker: a probe was answered."""
        return SharedBreaker(answers={node: when}) if self.is_open else self

    def probe_failed(self, node: str, process: str, now: int) -> SharedBreaker:
        """Note the probe of a process that had the turn for its node."""
        if not self.is_open or self.prober != process:
            return self
        pause = min(_MAX_PAUSE_MS, 2 * self.pause)
        failures = _newest({**self.failures, node: now})
        return replace(self, failures=failures, pause=pause, until=now + pause, prober="")

    def next_turn(self, now: int) -> int:
        """When the next process may probe: at once if the time was written by a Redis with another clock."""
        return self.until if self.until <= now + _MAX_PAUSE_MS else now

    def claimable_at(self, node: str, now: int, living: int) -> int:
        """When a process of a node should claim the turn: a node whose word is not known yet before those that have failed."""
        failed, turn = self.failures.get(node), self.next_turn(now)
        if failed is None or living < 2:
            return turn
        is_last = failed >= max(self.failures.values())
        return turn + _COURTESY_MS if is_last or living > len(self.failures) else turn


def read_breakers(text: bytes | None) -> dict[str, SharedBreaker]:
    """The breakers of an upstream by kind of request; none if another version or nobody has written them."""
    if text is None or len(text) > _MAX_TEXT:
        return {}
    try:
        found = json.loads(text)
        return {kind: _breaker(facts) for kind, facts in found.items() if _is_name(kind)}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}


def write_breakers(breakers: Mapping[str, SharedBreaker]) -> str:
    """What `read_breakers` reads; empty if there is nothing to be known."""
    known = {kind: _facts(breaker) for kind, breaker in breakers.items() if breaker != SharedBreaker()}
    return json.dumps(known, separators=(",", ":"), sort_keys=True) if known else ""


def _facts(breaker: SharedBreaker) -> dict[str, Any]:
    return {
        "failures": dict(breaker.failures),
        "answers": dict(breaker.answers),
        "since": breaker.since,
        "pause": breaker.pause,
        "until": breaker.until,
        "prober": breaker.prober,
    }


def _breaker(facts: dict[str, Any]) -> SharedBreaker:
    prober = facts["prober"]
    if not isinstance(prober, str) or not _is_name(prober):
        raise ValueError(prober)
    since, pause, until = (_time(facts[name]) for name in ("since", "pause", "until"))
    return SharedBreaker(_times(facts["failures"]), _times(facts["answers"]), since, pause, until, prober)


def _is_name(text: str) -> bool:
    """Whether a text may stand in a line of the log."""
    return len(text) <= _MAX_NAME and text.isprintable()


def _times(found: dict[str, Any]) -> dict[str, int]:
    if len(found) > _MAX_NAMES or not all(_is_name(name) for name in found):
        raise ValueError(found)
    return {name: _time(value) for name, value in found.items()}


def _time(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_TIME_MS:
        raise ValueError(value)
    return value


def _recent(times: Mapping[str, int], now: int) -> dict[str, int]:
    return {node: when for node, when in times.items() if abs(now - when) <= WINDOW_MS}


def _newest(times: Mapping[str, int]) -> dict[str, int]:
    kept = sorted(times, key=times.__getitem__)[-_MAX_NAMES:]
    return {node: times[node] for node in sorted(kept)}
