"""Accounts that upstreams refuse: one process of the cluster shows a password that may be wrong, and the others learn the answer.

Too many wrong passwords lock an account: Docker Hub does so for ten minutes. Without Redis each process finds out by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Coroutine
from typing import Any

from mirror.cluster.events import MAX_EVENTS
from mirror.cluster.link import LinkDown, Script
from mirror.cluster.news import News
from mirror.cluster.secret import ClusterSecret
from mirror.core.retry import backoff
from mirror.upstream.login import MAX_PAUSE_S, Credentials, Login, LoginRefusals, LoginSharing

# So long a process may be the only one that shows credentials; the others wait no longer than that.
TURN_S = 5.0
# Between two looks at the turn of another process: longer and longer, since those of a thousand nodes may wait.
_MIN_LOOK_S, _MAX_LOOK_S = 0.05, 0.5
# So long everybody may show credentials that one process was accepted with; the next one after that has a turn again.
_ACCEPTED_S = 60.0
# The processes of a cluster that is reloaded begin at different times: a refusal from shortly before counts.
_RELOAD_S = 10.0
_MAX_REFUSALS = 64
_REFUSED, _WAIT = 1, 2

# KEYS: account. ARGV: process, ms of a turn or 0 to take none, ms after which a refusal counts no more or nothing.
# Returns what to do, how many refusals in a row there were, and for how many ms the last one or the turn of another one counts.
_ASK = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'accepted', 'at', 'until', 'count', 'turn', 'by')
if found[1] then return {0, 0, 0} end
local at, count, left = tonumber(found[2]) or 0, tonumber(found[4]) or 0, (tonumber(found[3]) or 0) - now
if ARGV[3] ~= '' and at < now - ARGV[3] then
  count = 0
-- A refusal from the future was written by the clock of another Redis, or before the clock was set back.
elseif left > 0 and at <= now + 10000 then
  return {1, count, left}
end
local turn = tonumber(ARGV[2])
if turn == 0 then return {0, count, 0} end
local others = (tonumber(found[5]) or 0) - now
if others > 0 and others <= turn and found[6] ~= ARGV[1] then return {2, count, others} end
redis.call('HSET', KEYS[1], 'turn', now + turn, 'by', ARGV[1])
if redis.call('PTTL', KEYS[1]) < turn then redis.call('PEXPIRE', KEYS[1], turn) end
return {0, count, 0}
""")
# KEYS: account. ARGV: process.
_END_TURN = Script("""
if redis.call('HGET', KEYS[1], 'by') == ARGV[1] then redis.call('HDEL', KEYS[1], 'turn', 'by') end
""")
# KEYS: account, events. ARGV: refusals in a row, ms of the pause, TTL in ms, maximum of events, words of an event.
_REFUSE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'at', now, 'until', now + ARGV[2], 'count', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
""")
# KEYS: account. ARGV: TTL in ms.
_ACCEPT = Script("""
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'accepted', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
""")


class SharedAccounts:
    """Shares the logins of this process.

    Args:
        secret: the HMAC key of the names in Redis. Without it, nobody can test guessed passwords against them.
        process: names this process among those of all nodes.
    """

    def __init__(self, news: News, secret: ClusterSecret, process: str) -> None:
        self.news = news
        self.secret = secret
        self.process = process
        self._tasks: set[asyncio.Task[None]] = set()

    def share(self, registry: str, upstream: str, login: Login, *, again: bool) -> None:
        """Share a login.

        Args:
            upstream: host and port.
            again: after a reload, by which operators have refused credentials tried at once.
        """
        if login.has_account:
            SharedAccount(self, registry, upstream, began=time.monotonic() if again else None).attach(login)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Tell the other nodes something, for which no request waits."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class SharedAccount:
    """Shares what one upstream says of an account.

    Args:
        began: refusals from before this monotonic time do not count; None if all do.
    """

    def __init__(self, node: SharedAccounts, registry: str, upstream: str, began: float | None) -> None:
        self._node = node
        self._registry = registry
        self._upstream = upstream
        self._began = began
        self._seen: int | None = None
        # What is told first arrives first.
        self._lock = asyncio.Lock()

    def attach(self, login: Login) -> None:
        """Share the refusals of a login from now on."""
        login.sharing = LoginSharing(self.has_news, self.ask, self.refused, self.accepted, self.undecided)

    def has_news(self) -> bool:
        """Whether other nodes may have said something since the last question."""
        return self._node.news.number != self._seen

    async def ask(self, credentials: Credentials, *, takes_turn: bool) -> LoginRefusals:
        """What other processes know of credentials. With a turn the others wait for the outcome, as this one does for theirs."""
        number, end = self._node.news.number, time.monotonic() + TURN_S
        with contextlib.suppress(LinkDown):
            for looks in itertools.count():
                answer, count, left_ms = await self._asked(credentials, takes_turn=takes_turn)
                if answer != _WAIT or time.monotonic() >= end:
                    break
                await asyncio.sleep(backoff(looks, base=_MIN_LOOK_S, cap=_MAX_LOOK_S))
            self._seen = number
            if answer == _REFUSED:
                return LoginRefusals(_bounded(count, 1), min(left_ms / 1000, MAX_PAUSE_S))
            return LoginRefusals(_bounded(count, 0))
        return LoginRefusals()

    async def _asked(self, credentials: Credentials, *, takes_turn: bool) -> tuple[int, int, int]:
        turn_ms = round(TURN_S * 1000) if takes_turn else 0
        age_ms: int | str = "" if self._began is None else round((time.monotonic() - self._began + _RELOAD_S) * 1000)
        found = await self._node.news.link.call(_ASK, [self._key(credentials)], self._node.process, turn_ms, age_ms)
        answer, count, left_ms = found
        return answer, count, left_ms

    def refused(self, credentials: Credentials, refusals: LoginRefusals) -> None:
        """Tell the other nodes that upstream refuses credentials."""
        self._node.start(self._refuse(self._key(credentials), refusals))

    def accepted(self, credentials: Credentials) -> None:
        """Tell the other nodes that upstream accepts credentials."""
        self._node.start(self._accept(self._key(credentials)))

    def undecided(self, credentials: Credentials) -> None:
        """End the turn of this process."""
        self._node.start(self._end_turn(self._key(credentials)))

    async def _refuse(self, key: str, refusals: LoginRefusals) -> None:
        news, pause_ms = self._node.news, max(1, round(refusals.wait * 1000))
        # After the pause it still says how long the next one is.
        ttl_ms = pause_ms + round(MAX_PAUSE_S * 1000)
        event = news.event(self._registry, self._upstream)
        async with self._lock:
            with contextlib.suppress(LinkDown):
                await news.link.insist(_REFUSE, [key, news.keys.events], refusals.count, pause_ms, ttl_ms, MAX_EVENTS, *event)
                news.add()

    async def _accept(self, key: str) -> None:
        async with self._lock:
            with contextlib.suppress(LinkDown):
                await self._node.news.link.insist(_ACCEPT, [key], round(_ACCEPTED_S * 1000))

    async def _end_turn(self, key: str) -> None:
        async with self._lock:
            with contextlib.suppress(LinkDown):
                await self._node.news.link.call(_END_TURN, [key], self._node.process)

    def _key(self, credentials: Credentials) -> str:
        mac = self._node.secret.name("account", credentials.username, credentials.password)
        return self._node.news.keys.account(self._registry, self._upstream, mac)


def _bounded(count: float, least: int) -> int:
    return max(least, min(int(count), _MAX_REFUSALS))
