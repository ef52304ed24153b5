"""The pull limit that all nodes share which upstream counts together: those of one account, or of one public address."""

from __future__ import annotations

import asyncio
import contextlib
import re

from mirror.cluster.events import MAX_EVENTS
from mirror.cluster.link import LinkDown, Script
from mirror.cluster.news import News
from mirror.core.pull_quota import QuotaState
from mirror.upstream.health import Health

# What is younger needs no look into Redis, and no write.
_INTERVAL_S = 1.0
_MAX_WINDOW_MS = 86_400_000
# Those of `mirror.upstream.attempt.UpstreamRequest`, and counted requests.
_KINDS = frozenset((b"manifest", b"blob", b"tags", b"referrers", b"check", b"pulls"))
_FIELD = re.compile(rb"(?:([0-9]{1,15})\|)?([0-9]{1,15})")

# KEYS: quota. Its fields are LEFT|UNTIL under `left`, and UNTIL under each kind of request that has to wait.
_GET = Script("""
local time = redis.call('TIME')
return {time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1])}
""")
# KEYS: quota, events. ARGV: pulls left or nothing, ms for which that counts, maximum of events, number of words of an event,
# they, kinds each with the ms that it has to wait. The longest wait stays. One that is new is an event.
_SET = Script("""
local time = redis.call('TIME')
local now, last, is_news, kinds = time[1] * 1000 + math.floor(time[2] / 1000), 0, 0, 5 + ARGV[4]
local function set(kind, ms, text)
  local until_ms = string.format('%.0f', now + ms)
  redis.call('HSET', KEYS[1], kind, text and text .. '|' .. until_ms or until_ms)
  last = math.max(last, ms)
end
if ARGV[1] ~= '' then set('left', tonumber(ARGV[2]), ARGV[1]) end
for number = kinds, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', KEYS[1], ARGV[number]) or '0') or 0
  if known < now + ARGV[number + 1] then set(ARGV[number], tonumber(ARGV[number + 1])) end
  if known + 1000 < now + ARGV[number + 1] then is_news = 1 end
end
if redis.call('PTTL', KEYS[1]) < last then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', last)) end
if is_news == 1 then redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 5, kinds - 1)) end
return is_news
""")


class SharedQuota:
    """Shares what one upstream has said about its pull limit.

    Args:
        registry: its name.
        account: stands for whom the limit is for where upstream does not say; empty for an anonymous mirror.
    """

    def __init__(self, news: News, registry: str, health: Health, account: str) -> None:
        self._news = news
        self._registry = registry
        self._health = health
        self._account = account
        self._current_until = 0.0
        self._is_changed = False
        self._urgent = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def attach(self) -> None:
        """Share from now on."""
        self._health.before_pull, self._health.quota_changed = self.adopt, self.changed

    async def adopt(self) -> None:
        """Learn what other nodes know, unless this one knows it of late."""
        if asyncio.get_running_loop().time() >= self._current_until:
            await self.refresh()

    async def refresh(self) -> None:
        """Learn what other nodes know."""
        key = self._key()
        if key is None:
            return
        with contextlib.suppress(LinkDown):
            now, words = await self._news.link.call(_GET, [key])
            self._current_until = asyncio.get_running_loop().time() + _INTERVAL_S
            self._health.pull_quota.learn(_state(words, now), self._health.clock())

    def changed(self, *, is_urgent: bool) -> None:
        """Tell the other nodes: at most once a second, unless it is urgent."""
        self._is_changed = True
        if is_urgent:
            self._urgent.set()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._is_changed:
            self._is_changed = False
            self._urgent.clear()
            state, key = self._health.pull_quota.state(self._health.clock()), self._key()
            words = [word for kind, wait in state.waits.items() for word in (kind, _milliseconds(wait))]
            if key is not None and (state.remaining is not None or words):
                left = "" if state.remaining is None else state.remaining
                event = self._news.event(self._registry, self._health.own.name)
                keys, own = [key, self._news.keys.events], (left, _milliseconds(state.window), MAX_EVENTS, len(event), *event)
                with contextlib.suppress(LinkDown):
                    if await self._news.link.call(_SET, keys, *own, *words):
                        self._news.add()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._urgent.wait()

    def _key(self) -> str | None:
        source = self._health.quota_source or self._account
        return self._news.keys.quota(self._registry, f"{self._health.own.name}|{source}") if source else None


def _milliseconds(seconds: float) -> int:
    return max(0, min(round(seconds * 1000), _MAX_WINDOW_MS))


def _state(words: list[bytes], now_ms: int) -> QuotaState:
    """The state of the fields in Redis, without those of another version."""
    remaining, window, waits = None, 0.0, {}
    for kind, text in zip(words[::2], words[1::2], strict=True):
        found = _FIELD.fullmatch(text)
        if found is None:
            continue
        seconds = min(int(found[2]) - now_ms, _MAX_WINDOW_MS) / 1000
        if kind == b"left" and found[1]:
            remaining, window = int(found[1]), seconds
        elif kind in _KINDS and seconds > 0:
            waits[kind.decode()] = seconds
    return QuotaState(remaining, window, waits)
