"""Breakers of upstreams that all nodes share: who fails tells the others, and one process of them all probes.

`mirror.core.shared_breaker` decides. This module keeps its values in Redis, changes them by compare-and-set, and applies them to
the `Health` of an upstream. Without Redis a node decides alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import structlog

from mirror.cluster.events import MAX_EVENTS, Event
from mirror.cluster.link import LinkDown, LinkRefused, Script
from mirror.cluster.members import TTL_S, Members
from mirror.cluster.news import News
from mirror.cluster.quota import SharedQuota
from mirror.core.shared_breaker import TTL_MS, WINDOW_MS, SharedBreaker, read_breakers, write_breakers
from mirror.metrics import Metrics
from mirror.upstream.health import SHARED_KINDS, Health
from mirror.upstream.sharing import BreakerSharing
from mirror.upstream.tracked_breaker import Shut, TrackedBreaker

log = structlog.get_logger(__name__)

# Of compare-and-set; then others have said what matters.
_MAX_TRIES = 4
# Between two words of one process about failures.
_INTERVAL_S = 1.0
# So long a process that waits for its turn does not look for news.
_LOOK_S = 1.0
# Spreads the claims of many processes.
_MIN_JITTER_S, _MAX_JITTER_S = 0.02, 0.3
_MAX_NAMED = 3

Step = Callable[[SharedBreaker, int, int], SharedBreaker]
"""Returns a breaker as it is to be, given it as it is, the time in ms, and the number of living nodes."""

# KEYS: upstream, nodes. ARGV: seconds for which a beat counts.
_GET = Script("""
local time = redis.call('TIME')
local living = redis.call('ZCOUNT', KEYS[2], time[1] - ARGV[1], '+inf')
return {time[1] * 1000 + math.floor(time[2] / 1000), living, redis.call('GET', KEYS[1])}
""")
# KEYS: upstream, events. ARGV: known value or nothing, value or nothing, TTL in ms, maximum of events, words of an event.
_SWAP = Script("""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if ARGV[5] then redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5)) end
return 1
""")


@dataclass(frozen=True)
class SharedUpstream:
    """An upstream whose breakers and pull limit the nodes share.

    Attributes:
        account: see `SharedQuota`.
    """

    registry: str
    url: str
    health: Health
    account: str


class SharedUpstreams:
    """What this node shares about its upstreams. Outlives reloads.

    Args:
        process: names this process among those of all nodes.
    """

    def __init__(self, news: News, members: Members, process: str, metrics: Metrics) -> None:
        self.news = news
        self.members = members
        self.process = process
        self.metrics = metrics
        self._upstreams: dict[SharedUpstream, SharedBreakers] = {}

    def share(self, upstreams: Iterable[SharedUpstream]) -> None:
        """Share these upstreams from now on, and no others."""
        before, self._upstreams = self._upstreams, {}
        for upstream in upstreams:
            self._upstreams[upstream] = before.get(upstream) or SharedBreakers(self, upstream)
        for unused in before.keys() - self._upstreams:
            before[unused].detach()

    async def handle(self, event: Event) -> None:
        """Have the processes of this node look, if it uses the upstream; this one does so now, so that operators are told."""
        for upstream, shared in list(self._upstreams.items()):
            scope = self.news.keys.scope(upstream.registry)
            if (event.fields["scope"], event.fields["upstream"]) == (scope, upstream.health.own.name):
                self.news.add()
                await shared.look()

    def missed(self) -> None:
        """Have the processes of this node look: events may have been missed."""
        self.news.add()


class SharedBreakers:
    """Shares the breakers of one upstream, and its pull limit."""

    def __init__(self, node: SharedUpstreams, upstream: SharedUpstream) -> None:
        self.health = upstream.health
        self._node = node
        self._registry = upstream.registry
        self._url = upstream.url
        self._quota = SharedQuota(node.news, upstream.registry, upstream.health, upstream.account)
        self._seen: int | None = None
        # Breakers by when this process has last told of a failure.
        self._told: dict[TrackedBreaker, float] = {}
        self._telling: dict[TrackedBreaker, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._quota.attach()
        self.health.sharing = BreakerSharing(self.look, self.noted, self.turn, self.probed)
        self._show()

    def detach(self) -> None:
        """End to share."""
        self.health.sharing = self.health.before_pull = self.health.quota_changed = None
        for guard in self.health.shared_guards:
            self.health.reopen(guard, answers=False)
        self._show()

    async def look(self) -> None:
        """Learn what the nodes say, if there is news: at most one call for the breakers, and one beside it for the pull limit.

        Of several requests at a time only the first one waits for that.
        """
        number, seen = self._node.news.number, self._seen
        if number == seen:
            return
        self._seen = number
        try:
            await asyncio.gather(self._read(), self._quota.refresh())
        except LinkRefused:
            # It would be refused again.
            pass
        except LinkDown:
            self._seen = seen
        except asyncio.CancelledError:
            self._seen = seen
            raise

    async def _read(self) -> None:
        now, living, text = await self._get()
        self._adopt(read_breakers(text), now, living)

    def noted(self, guard: TrackedBreaker) -> None:
        """Tell the other nodes of an outcome, if that may change what they know."""
        if guard.kind and guard.kind not in SHARED_KINDS:
            return
        now, told = self.health.clock(), self._told.get(guard)
        if guard.failed_at > guard.answered_at:
            if guard.shut is None and (told is None or now - told >= _INTERVAL_S):
                self._told[guard] = now
                self._tell(guard)
        elif told is not None or guard.shut is not None:
            self._told.pop(guard, None)
            self._tell(guard)

    def _tell(self, guard: TrackedBreaker) -> None:
        if guard not in self._telling:
            self._telling[guard] = asyncio.get_running_loop().create_task(self._write(guard))

    async def _write(self, guard: TrackedBreaker) -> None:
        told = None
        try:
            # The contrary may come meanwhile; the same again is no news.
            while told is not (fails := guard.failed_at > guard.answered_at):
                if told is not None and fails:
                    await asyncio.sleep(_INTERVAL_S)
                told = guard.failed_at > guard.answered_at
                await self._change(guard, self._outcome(guard))
        except LinkDown:
            self._told.pop(guard, None)
        finally:
            del self._telling[guard]

    def _outcome(self, guard: TrackedBreaker) -> Step:
        me, asked = self._node.news.me, self.health.clock()

        def step(breaker: SharedBreaker, now: int, living: int) -> SharedBreaker:
            if guard.failed_at > guard.answered_at:
                return breaker.failed(me, now - _milliseconds(asked - guard.failed_at), now, living)
            return breaker.answered(me, now - _milliseconds(asked - guard.answered_at))

        return step

    async def turn(self, guard: TrackedBreaker) -> bool:
        """Wait until this process may probe: for all nodes, or for itself since they cannot be asked; False if nobody has to."""
        link, process = self._node.news.link, self._node.process
        while (shut := guard.shut) is not None and link.is_up:
            if (wait := shut.claim_at - self.health.clock()) > 0:
                await asyncio.sleep(min(wait, _LOOK_S))
                await self.look()
                continue
            try:
                found = await self._change(guard, lambda breaker, now, _: breaker.claimed(process, now))
            except LinkDown:
                return True
            if found.prober == process or not (found.is_open or found.answers):
                return True
        return guard.shut is not None

    async def probed(self, guard: TrackedBreaker, is_answered: bool) -> None:
        """Tell the other nodes how a probe has ended."""
        me, process = self._node.news.me, self._node.process

        def step(breaker: SharedBreaker, now: int, _: int) -> SharedBreaker:
            return breaker.probe_answered(me, now) if is_answered else breaker.probe_failed(me, process, now)

        with contextlib.suppress(LinkDown):
            if (await self._change(guard, step)).is_open:
                return
        # Redis is away, has lost its data, or the upstream answers.
        self.health.reopen(guard, answers=False)
        self._show()
        self.noted(guard)

    async def _get(self) -> tuple[int, int, bytes | None]:
        news = self._node.news
        keys = [news.keys.upstream(self._registry, self._url), news.keys.nodes]
        now, living, text = await news.link.call(_GET, keys, TTL_S)
        # After a loss of data nobody has beaten yet.
        return int(now), max(int(living), self._node.members.count), text

    async def _change(self, guard: TrackedBreaker, step: Step) -> SharedBreaker:
        """Change a breaker in Redis, and return it as it is then. Raises LinkDown."""
        async with self._lock:
            for _ in range(_MAX_TRIES):
                now, living, text = await self._get()
                known = read_breakers(text)
                before = known.get(guard.kind, SharedBreaker())
                after = step(before, now, living)
                if after == before or await self._swap(
                    text, {**known, guard.kind: after}, is_news=after.is_open != before.is_open
                ):
                    break
                after = before
            self._adopt({**known, guard.kind: after}, now, living)
            return after

    async def _swap(self, text: bytes | None, breakers: dict[str, SharedBreaker], *, is_news: bool) -> bool:
        news = self._node.news
        keys = [news.keys.upstream(self._registry, self._url), news.keys.events]
        ttl = TTL_MS if any(breaker.is_open for breaker in breakers.values()) else WINDOW_MS
        event = news.event(self._registry, self.health.own.name) if is_news else []
        done = await news.link.call(_SWAP, keys, text or b"", write_breakers(breakers), ttl, MAX_EVENTS, *event)
        if done and is_news:
            news.add()
        return bool(done)

    def _adopt(self, known: dict[str, SharedBreaker], now_ms: int, living: int) -> None:
        for guard in self.health.shared_guards:
            breaker = known.get(guard.kind, SharedBreaker())
            if breaker.is_open:
                self._shut(guard, breaker, now_ms, living)
            elif guard.shut is not None and breaker.answers:
                self.health.reopen(guard, answers=True)
            elif guard.shut is not None:
                # The word of the nodes was lost: probe now.
                guard.shut = replace(guard.shut, claim_at=self.health.clock())
        self._show()

    def _shut(self, guard: TrackedBreaker, breaker: SharedBreaker, now_ms: int, living: int) -> None:
        now, me = self.health.clock(), self._node.news.me
        since, until, claim = (
            now + (when - now_ms) / 1000 for when in (breaker.since, breaker.until, breaker.claimable_at(me, now_ms, living))
        )
        if guard.answered_at > max(since, guard.failed_at):
            # This node has got an answer since: it goes on, and tells so, which opens the breaker for all.
            self.health.reopen(guard, answers=False)
            self._tell(guard)
            return
        if guard.shut is None:
            log.warning("upstream_shut", upstream=guard.name, by=_named(breaker), consequence="one node of the cluster probes it")
        claim_at = max(claim, now) + random.uniform(_MIN_JITTER_S, _MAX_JITTER_S)  # noqa: S311 - spreads
        self.health.shut(guard, Shut(since, until, claim_at, _named(breaker)))

    def _show(self) -> None:
        gauge = self._node.metrics.cluster_upstream_shut.labels(self._registry, self.health.own.name)
        gauge.set(any(guard.shut is not None for guard in self.health.shared_guards))


def _milliseconds(seconds: float) -> int:
    return max(0, round(min(seconds * 1000, TTL_MS)))


def _named(breaker: SharedBreaker) -> str:
    nodes = sorted(breaker.failures)
    more = [f"{len(nodes) - _MAX_NAMED} more"] if len(nodes) > _MAX_NAMED else []
    return " and ".join([", ".join(nodes[:_MAX_NAMED]), *more])
