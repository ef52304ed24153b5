"""Manifests by tag: as fresh as the policy wants, with one check for all who ask, and stale while upstream is out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from mirror.cache.answers import ManifestAnswer
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.tag_store import TagStore
from mirror.core.digest import Digest
from mirror.core.freshness import Fresh, TagRecord, decide
from mirror.core.names import Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.staleness import DELETED, SLOW, TABLE, may_serve
from mirror.errors import AccessDenied, MirrorError, NotFound, UpstreamError, UpstreamRefusal, UpstreamTimeout
from mirror.storage.images import is_complete
from mirror.throttled_log import ThrottledLog
from mirror.upstream.flights import GuardedSingleFlight

log = structlog.get_logger(__name__)

# What was found by digest after upstream had been asked for the tag.
_COUNTS_AS = {Outcome.HIT: Outcome.REVALIDATED, Outcome.JOINED: Outcome.MISS}
# Seconds in which one reason is logged once per registry; the metric counts each answer.
_QUIET = 10.0


class ManifestByTag:
    """Answers for tags."""

    def __init__(
        self, context: Context, content: CachedContent, by_digest: ManifestByDigest, records: TagStore, pull_policy: PullPolicy
    ) -> None:
        self._pull_policy = pull_policy
        self._context = context
        self._content = content
        self._by_digest = by_digest
        self._records = records
        self._log = ThrottledLog(log, context.clock, burst=1, interval=_QUIET)
        # When the checks that are under way began, by the event loop's time.
        self._begun: dict[tuple[Repository, Tag], float] = {}
        self._checks: GuardedSingleFlight[tuple[ManifestAnswer, float]] = GuardedSingleFlight(context.in_use)

    async def get(self, repository: Repository, tag: Tag, *, head: bool) -> tuple[ManifestAnswer, float]:
        """The manifest that a tag names, and until when that is good; raises like `Manifests.get`."""
        context, ttl = self._context, self._context.policies.of(repository, tag).ttl
        record = context.store.index.tag(repository, tag)
        if record is not None and isinstance(decide(record, context.clock(), ttl), Fresh):
            return await self._named(repository, record, head=head), record.checked + ttl
        try:
            self._content.raise_if_negative("manifest", repository, tag)
            return await self._checked_soon(repository, tag, record, head=head)
        except (UpstreamError, UpstreamRefusal) as error:
            old = await self._old(repository, tag, record, self._reason(repository, error), error)
            if old is not None:
                return old, 0.0
            self._repeat_absence(repository, tag, error)
            raise

    async def close(self) -> None:
        """Stop asking upstream."""
        await self._checks.close()

    async def _checked_soon(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, head: bool
    ) -> tuple[ManifestAnswer, float]:
        """What a check finds; if that takes too long, what is held, while the check goes on. The limit is the check's own."""
        if record is None:
            return await self._checked(repository, tag, record, head=head)
        now, limit = asyncio.get_running_loop().time(), self._context.policies.general.revalidate_timeout
        waiting = asyncio.create_task(self._checked(repository, tag, record, head=head))
        try:
            await asyncio.wait([waiting], timeout=max(0.0, self._begun.get((repository, tag), now) + limit - now))
            late = UpstreamTimeout(f"upstream has been asked for {repository} {tag} for more than {limit:g} s")
            old = None if waiting.done() else await self._old(repository, tag, record, SLOW, late)
            return await waiting if old is None else (old, 0.0)
        finally:
            # Only the wait ends: the check is shared.
            waiting.cancel()

    async def _checked(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, head: bool
    ) -> tuple[ManifestAnswer, float]:
        """What a tag names by upstream's word, asked for once for all who want to know, and until when that is good."""
        # A HEAD of what nobody knows yet is another question than a GET: it must not cost a pull.
        key = (repository, tag, head and record is None)
        (answer, good_until), joined = await self._checks.run(key, lambda: self._timed(repository, tag, record, head=head))
        if answer.raw is None and not head:
            answer = await self._by_digest.get(repository, answer.digest, head=False)
        elif joined:
            answer = replace(answer, outcome=Outcome.JOINED)
        return answer, good_until

    async def _timed(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, head: bool
    ) -> tuple[ManifestAnswer, float]:
        """A check, of which those who come later can tell when it began."""
        begun = self._begun[repository, tag] = asyncio.get_running_loop().time()
        try:
            return await self._check(repository, tag, record, head=head)
        finally:
            if self._begun.get((repository, tag)) == begun:
                del self._begun[repository, tag]

    async def _named(self, repository: Repository, record: TagRecord, *, head: bool) -> ManifestAnswer:
        """What a fresh record names."""
        self._pull_policy.check_content(repository, record.digest)
        held = await self._by_digest.held(repository, record.digest)
        if held is not None:
            return held
        if head:
            return ManifestAnswer(record.digest, record.media_type, record.size, None, Outcome.HIT)
        return await self._by_digest.get(repository, record.digest, head=False)

    async def _check(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, head: bool
    ) -> tuple[ManifestAnswer, float]:
        """Ask upstream what a tag names now, and tell until when that is good, counted from when it was asked.

        The record changes only when what it names is there to be served.
        By HEAD, also for a tag that is not known: it costs no pull, and who asks for its digest, or for another tag of the same
        image, at the same time or later, costs none either.
        """
        asked = self._context.clock()
        now = await self._by_digest.asked(repository, tag)
        if now.digest is not None:
            self._pull_policy.check_content(repository, now.digest)
        if now.digest is None:
            answer = await self._fetched(repository, tag)
        elif record is not None and now.digest == record.digest:
            unread = ManifestAnswer(record.digest, record.media_type, record.size, None, Outcome.REVALIDATED)
            held = await self._by_digest.held(repository, record.digest)
            answer = unread if held is None else replace(held, outcome=Outcome.REVALIDATED)
        elif head and record is None and now.media_type is not None and now.size is not None:
            answer = ManifestAnswer(now.digest, now.media_type, now.size, None, Outcome.MISS)
        else:
            answer = await self._told(repository, tag, now.digest)
        if answer.outcome is Outcome.BYPASS:
            return answer, 0.0
        known = await self._records.found(repository, tag, answer, asked=asked)
        counts = known is not None and known.digest == answer.digest
        return answer, asked + self._context.policies.of(repository, tag).ttl if counts else 0.0

    async def _told(self, repository: Repository, tag: Tag, digest: Digest) -> ManifestAnswer:
        """The manifest that a HEAD of the tag has named."""
        try:
            answer = await self._by_digest.get(repository, digest, head=False)
        except NotFound:
            # The tag has moved in between, or upstream's HEAD is not to be trusted.
            return await self._fetched(repository, tag)
        return replace(answer, outcome=_COUNTS_AS.get(answer.outcome, answer.outcome))

    async def _fetched(self, repository: Repository, tag: Tag) -> ManifestAnswer:
        answer = await self._by_digest.fetch(repository, tag)
        self._pull_policy.check_content(repository, answer.digest)
        return answer

    def _repeat_absence(self, repository: Repository, tag: Tag, error: UpstreamError | UpstreamRefusal) -> None:
        """Raise NotFound if upstream cannot be asked, but had no such signature when it was: clients need to be told that."""
        since = self._context.store.index.attachments.absent_since(repository, tag)
        if since is None or not isinstance(error, UpstreamError):
            return
        if may_serve(error.reason, self._context.clock() - since, self._context.policies.general.stale_if_error):
            raise NotFound(f"upstream said last that it does not have {repository} {tag}") from error

    async def _old(
        self, repository: Repository, tag: Tag, record: TagRecord | None, reason: str, error: MirrorError
    ) -> ManifestAnswer | None:
        """What was known before, if the reason allows it and everything that it needs is held."""
        context = self._context
        longest = context.policies.of(repository, tag).stale_if_error
        # What upstream said last is not replaced by what it said before.
        if record is None or record.denied or not may_serve(reason, context.clock() - record.checked, longest):
            return None
        self._pull_policy.check_content(repository, record.digest)
        held = await self._by_digest.held(repository, record.digest)
        if held is None or not await context.in_thread(is_complete, context.store.files, record.digest):
            return None
        context.metrics.stale_served.labels(repository.registry, reason).inc()
        self._tell(repository, tag, reason, error)
        return replace(held, outcome=Outcome.STALE, reason=reason)

    def _reason(self, repository: Repository, error: UpstreamError | UpstreamRefusal) -> str:
        if isinstance(error, UpstreamError):
            return error.reason
        if isinstance(error, AccessDenied):
            return "denied"
        return DELETED if repository.registry in self._context.policies.keep_deleted else "not_found"

    def _tell(self, repository: Repository, tag: Tag, reason: str, error: MirrorError) -> None:
        """Log it, but not a thousand times a second."""
        key, fields = f"{repository.registry} {reason}", {"repository": str(repository), "tag": str(tag), "reason": reason}
        self._log.tell("warning", "stale_served", key, **fields, said=TABLE[reason].said, cause=str(error))
