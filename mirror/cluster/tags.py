"""Records of tags that all nodes share: a check by one node counts for all of the same scope.

A record states what upstream has answered last, as far as the nodes know; each node decides by its own policy how long that
counts, and whether it follows a moved tag. Times in Redis are those of its clock. A node states and learns them as ages, so no
difference between clocks matters.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.cluster import turns
from mirror.cluster.events import MAX_EVENTS
from mirror.cluster.failures import decode_failure, encode_failure
from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.cluster.refusals import refusal
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import Repository, Tag
from mirror.errors import UpstreamError

_TTL_MS = 30 * 86_400_000
# A node that has waited CHECK_TIMEOUT_S takes the turn over, so a turn lasts longer only if no node waits.
_TURN_MS = 25_000
_FAILED_MS = 3_000
_ALWAYS_MS = 10**15

# KEYS: tag, turn, refusal. ARGV: token, TTL of the turn, ms that a check counts, age at which none counts, the turn that this
# node has seen, whether it may be replaced. A record is CHECKED|CHANGED|DIGEST|SIZE|TYPE, a turn BEGAN|TOKEN.
_TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local record, turn, seen = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]), ARGV[5]
if record then
  local checked = tonumber(string.match(record, '^(%d+)|'))
  local began = tonumber(string.match(seen, '^(%d+)|'))
  if checked and checked <= now and now - checked < tonumber(ARGV[4]) then
    if now - checked < tonumber(ARGV[3]) or (began and checked >= began) then return {'found', record, now - checked} end
  end
end
local refused = redis.call('GET', KEYS[3])
if refused then return {'refused', refused} end
if not turn or (turn == seen and ARGV[6] == '1') then
  turn = string.format('%.0f', now) .. '|' .. ARGV[1]
  redis.call('SET', KEYS[2], turn, 'PX', ARGV[2])
  return {'turn', turn}
end
if string.sub(turn, 1, 7) == 'failed|' then return {'failed', string.sub(turn, 8)} end
return {'wait', turn}
""")

# KEYS: tag, turn, refusal, events. ARGV: own turn, age of the check in ms, digest, DIGEST|SIZE|TYPE, TTL, fields of the event.
_PUT = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local checked = now - tonumber(ARGV[2])
local record = redis.call('GET', KEYS[1])
local known, changed, digest
if record then known, changed, digest = string.match(record, '^(%d+)|(%d+)|([^|]*)|') end
if not known or tonumber(known) <= checked or tonumber(known) > now then
  local moved = digest and digest ~= ARGV[3]
  if not digest or moved then changed = string.format('%.0f', checked) end
  redis.call('SET', KEYS[1], string.format('%.0f', checked) .. '|' .. changed .. '|' .. ARGV[4], 'PX', ARGV[5])
  redis.call('DEL', KEYS[3])
  if moved then redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'kind', 'moved', unpack(ARGV, 7)) end
end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
""")
# KEYS: turn. ARGV: own turn, the failure that replaces it, or nothing, TTL.
_END = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
""")
_FIND = Script("""
local record = redis.call('GET', KEYS[1])
local checked = record and tonumber(string.match(record, '^(%d+)|'))
if not checked then return false end
local time = redis.call('TIME')
return {record, time[1] * 1000 + math.floor(time[2] / 1000) - checked}
""")


@dataclass(frozen=True, slots=True)
class SharedTag:
    """What upstream has answered about a tag.

    Attributes:
        media_type, size: None if upstream did not say.
        checked: when the check began, in seconds since the epoch on this host's clock.
    """

    digest: Digest
    media_type: str | None
    size: int | None
    checked: float


@dataclass
class TagTurn:
    """What a turn has brought.

    Attributes:
        found: what another node has learned.
        learned: what the holder of the turn has learned.
    """

    found: SharedTag | None = None
    learned: SharedTag | None = None

    def learn(self, digest: Digest | None, media_type: str | None, size: int | None, asked: float) -> None:
        """Note upstream's answer to a check that began at `asked`; one without a digest is of no use to others."""
        if digest is not None:
            self.learned = SharedTag(digest, media_type, size, asked)


class SharedTags:
    """The records of tags of a cluster.

    Args:
        me: the name of this node.
    """

    def __init__(self, link: Link, keys: Keys, me: str) -> None:
        self._link = link
        self._keys = keys
        self._me = me

    @contextlib.asynccontextmanager
    async def turn(self, repository: Repository, tag: Tag, ttl_s: float, since: float) -> AsyncIterator[TagTurn]:
        """Wait until another node's check can be used, or until it is this node's turn to check. Without Redis that is at once.

        Args:
            ttl_s: how long a check counts, in seconds.
            since: only checks that began later count, in seconds since the epoch.

        Raises:
            UpstreamError: another node has asked upstream a moment ago, and upstream failed.
            UpstreamRefusal: upstream has refused the tag to another node within its `tags.not_found_ttl`.
        """
        found, own, failure = *await self._take(repository, tag, ttl_s, since), ""
        turn = TagTurn(found)
        try:
            yield turn
        except UpstreamError as error:
            encoded = encode_failure(error)
            failure = "" if encoded is None else f"failed|{encoded}"
            raise
        finally:
            if turn.learned is not None:
                await self.put(repository, tag, turn.learned, own)
            elif own:
                with contextlib.suppress(LinkDown):
                    await self._link.call(_END, [self._keys.tag_turn(repository, tag)], own, failure, _FAILED_MS)

    async def find(self, repository: Repository, tag: Tag) -> SharedTag | None:
        """Return the record of a tag, however old; None if there is none, or Redis does not answer."""
        asked = time.time()
        with contextlib.suppress(LinkDown):
            found = await self._link.call(_FIND, [self._keys.tag(repository, tag)])
            return None if found is None else _parsed(found, asked)
        return None

    async def put(self, repository: Repository, tag: Tag, learned: SharedTag, own_turn: str = "") -> None:
        """Write what this node has learned, unless another one has learned it later, and end a turn of this node."""
        keys = [self._keys.tag(repository, tag), self._keys.tag_turn(repository, tag)]
        keys += [self._keys.refusal("manifest", repository, tag), self._keys.events]
        size, digest = "" if learned.size is None else learned.size, str(learned.digest)
        value = f"{digest}|{size}|{learned.media_type or ''}"
        scope = self._keys.scope(repository.registry)
        event = ("node", self._me, "scope", scope, "name", repository.path, "reference", str(tag), "digest", digest)
        age = _milliseconds(max(0.0, time.time() - learned.checked))
        with contextlib.suppress(LinkDown):
            await self._link.call(_PUT, keys, own_turn, age, digest, value, _TTL_MS, MAX_EVENTS, *event)

    async def _take(self, repository: Repository, tag: Tag, ttl_s: float, since: float) -> tuple[SharedTag | None, str]:
        """Return what another node has learned, or the turn of this one; neither if it goes on without."""
        keys = [self._keys.tag(repository, tag), self._keys.tag_turn(repository, tag)]
        keys.append(self._keys.refusal("manifest", repository, tag))
        token, seen = os.urandom(8).hex(), b""
        async for passed in turns.attempts(turns.CHECK_TIMEOUT_S + 1):
            now, is_patient = time.time(), passed < turns.CHECK_TIMEOUT_S
            ages = (_milliseconds(ttl_s), _milliseconds(now - since))
            try:
                kind, *rest = await self._link.call(_TAKE, keys, token, _TURN_MS, *ages, seen, int(not is_patient))
            except LinkDown:
                break
            if kind == b"found" and (found := _parsed(rest, now)) is not None:
                return found, ""
            if kind == b"turn":
                return None, rest[0].decode()
            if kind == b"refused":
                error = refusal(rest[0], f"{repository} {tag}")
                if error is None:
                    break
                raise error
            if kind == b"failed" and (failure := decode_failure(rest[0].decode(errors="replace"))) is not None:
                raise failure
            if kind != b"wait" or not is_patient:
                break
            seen = rest[0]
        return None, ""


def _milliseconds(seconds: float) -> int:
    return _ALWAYS_MS if seconds * 1000 > _ALWAYS_MS else round(seconds * 1000)


def _parsed(found: Sequence[Any], asked: float) -> SharedTag | None:
    """The record of a value in Redis and its age at `asked` at the latest; None if the value is of another version."""
    try:
        record, age_ms = found
        _, _, digest, size, media_type = record.decode().split("|", 4)
        return SharedTag(Digest.parse(digest), media_type or None, int(size) if size else None, asked - int(age_ms) / 1000)
    except (InvalidInput, ValueError):
        return None
