"""Events that every node has to know, in a stream in Redis: moves, purges, denials, orders.

One process of a node reads the stream, and keeps in the store how far it has. If the entry that it has read last is gone, because
the stream was trimmed or Redis has lost its data, events may be missing: the node then forgets what it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.errors import StorageError
from mirror.small_files import read_text
from mirror.storage.coordination import LeaderLock

log = structlog.get_logger(__name__)

MAX_EVENTS = 10_000
"""Redis keeps at least so many events."""

# Of one call.
_MAX_KEYS = 500
# How long one wait for an event lasts, and the pause after Redis did not answer.
_WAIT_S, _PAUSE_S = 5.0, 0.25
# A disk that cannot be written for now.
_LOCK_PAUSE_S = 10.0

# KEYS: events. ARGV: maximum of events, fields.
_PUBLISH = Script("return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))")
_DELETE = Script("return redis.call('DEL', unpack(KEYS))")
# KEYS: events. ARGV: the entry that was read last, or nothing. An empty stream gets an entry, so that its loss can be noticed.
_NEXT = Script("""
local read = ARGV[1]
local found = read ~= '' and redis.call('XRANGE', KEYS[1], read, '+', 'COUNT', 101) or {}
if not found[1] or found[1][1] ~= read then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  return {read == '' and 'new' or 'lost', last and last[1] or redis.call('XADD', KEYS[1], '*', 'kind', 'begin')}
end
table.remove(found, 1)
local time = redis.call('TIME')
return {'read', time[1] * 1000 + math.floor(time[2] / 1000), found}
""")


@dataclass(frozen=True)
class Event:
    """An event.

    Attributes:
        name: its identifier in the stream.
        age: seconds since it was published.
        node: who published it.
    """

    name: str
    age: float
    kind: str
    node: str
    fields: dict[str, str]


Handler = Callable[[Event], Awaitable[None]]


class Events:
    """Publishes events, and has those of other nodes handled.

    Args:
        me: the name of this node.

    Attributes:
        handlers: by kind; called by the process that reads for the node, for events of other nodes.
        forget: called if events may have been missed.
    """

    def __init__(self, link: Link, keys: Keys, me: str) -> None:
        self.handlers: dict[str, Handler] = {}
        self.forget: Callable[[], Awaitable[None]] = _forget_nothing
        self._link = link
        self._keys = keys
        self._me = me

    async def publish(self, kind: str, fields: dict[str, str | int], deleted: Sequence[str] = ()) -> str:
        """Delete keys, publish an event, and return its name.

        Raises:
            LinkDown: Redis has not taken it, or not said so.
        """
        await self.delete(deleted)
        words = [word for field in {"kind": kind, "node": self._me, **fields}.items() for word in field]
        name = await self._link.call(_PUBLISH, [self._keys.events], MAX_EVENTS, *words)
        return str(name.decode())

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete keys in Redis. Raises LinkDown."""
        for start in range(0, len(keys), _MAX_KEYS):
            await self._link.call(_DELETE, keys[start : start + _MAX_KEYS])

    async def run(self, lock: str, position: Path) -> None:
        """Handle the events of other nodes until cancelled; of several processes only one does.

        Args:
            lock: the file that the process locks.
            position: the file that keeps how far the events were read.
        """
        while True:
            try:
                with contextlib.closing(LeaderLock(lock)) as leader:
                    await leader.elected()
                    await self._read(position)
            except StorageError as error:
                log.warning("events_not_read", cause=str(error), consequence="other nodes are not heard of for now")
                await asyncio.sleep(_LOCK_PAUSE_S)

    async def _read(self, position: Path) -> None:
        while True:
            try:
                await self._follow(position)
            except LinkDown:
                pass
            except Exception:
                # Leases and beats must not end with it.
                log.exception("events_bug")
            await asyncio.sleep(_PAUSE_S)

    async def _follow(self, position: Path) -> None:
        """Handle events until Redis does not answer."""
        read = await _position(position)
        while True:
            kind, now, *rest = await self._link.call(_NEXT, [self._keys.events], read)
            if kind != b"read":
                # Also a node that begins to read may know what has changed since.
                await self.forget()
                if kind == b"lost":
                    log.warning("events_missed", consequence="what is known of tags is checked again")
                read = now.decode()
            elif rest[0]:
                for entry in rest[0]:
                    await self._handle(_parsed(entry, now))
                    read = entry[0].decode()
            else:
                await self._link.wait_for_entry(self._keys.events, read, _WAIT_S)
                continue
            await _write(position, read)

    async def _handle(self, event: Event) -> None:
        handler = self.handlers.get(event.kind)
        if handler is None or event.node == self._me:
            return
        try:
            await handler(event)
        except Exception:
            # Of another version, or a bug: it must not hold up the events after it.
            log.exception("event_not_handled", kind=event.kind, entry=event.name)


async def _forget_nothing() -> None:
    pass


def _parsed(entry: Any, now_ms: int) -> Event:
    name, words = entry[0].decode(), [word.decode(errors="replace") for word in entry[1]]
    fields = dict(zip(words[::2], words[1::2], strict=False))
    age = max(0.0, (now_ms - int(name.partition("-")[0])) / 1000)
    return Event(name, age, fields.get("kind", ""), fields.get("node", ""), fields)


async def _position(position: Path) -> str:
    """The entry that was read last; nothing in a new store, or if the file is damaged: then there is nothing to be forgotten."""
    try:
        text = (await read_text(position)).strip()
    except (OSError, UnicodeDecodeError):
        return ""
    milliseconds, _, number = text.partition("-")
    return text if milliseconds.isdigit() and number.isdigit() else ""


async def _write(position: Path, read: str) -> None:
    try:
        await asyncio.to_thread(position.write_text, read)
    except OSError as error:
        log.warning("events_position_not_written", cause=str(error), consequence="events are handled again after a restart")
