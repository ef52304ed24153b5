"""Manifests by tag: fresh within the policy's ttl, checked once for all clients, stale while upstream cannot be asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from mirror.cache.answers import ManifestAnswer
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.kept_images import KeptImages
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.tag_checks import TagChecks
from mirror.cache.tag_store import TagStore
from mirror.core.digest import Digest
from mirror.core.freshness import Decision, Due, Fresh, TagRecord, Unknown, decide
from mirror.core.names import Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.staleness import DELETED, SLOW, TABLE, may_serve
from mirror.core.tag_moves import Keep
from mirror.errors import AccessDenied, MirrorError, NotFound, UpstreamError, UpstreamRefusal, UpstreamTimeout
from mirror.storage.images import is_complete
from mirror.throttled_log import ThrottledLog
from mirror.upstream.flights import GuardedSingleFlight
from mirror.upstream.registry import ManifestHead

log = structlog.get_logger(__name__)

# The outcome of a tag, by that of the lookup by digest after upstream was asked for the tag.
_OUTCOME_OF_CHECK = {Outcome.HIT: Outcome.REVALIDATED, Outcome.JOINED: Outcome.MISS}
# One log line per registry and reason; the metric counts each answer.
_LOG_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class _Request:
    """A request for a tag.

    Attributes:
        record: what the index knows of the tag.
        head: the client wants only the headers.
    """

    repository: Repository
    tag: Tag
    record: TagRecord | None
    head: bool


class ManifestByTag:
    """Answers for tags.

    Attributes:
        moves: decides whether a tag follows upstream.
        upstream: asks upstream what tags name.
    """

    def __init__(
        self, context: Context, content: CachedContent, by_digest: ManifestByDigest, tag_store: TagStore, pull_policy: PullPolicy
    ) -> None:
        self.upstream = TagChecks(context, by_digest)
        self.moves = tag_store.moves
        self._pull_policy = pull_policy
        self._context = context
        self._content = content
        self._by_digest = by_digest
        self._tag_store = tag_store
        self._kept = KeptImages(by_digest, pull_policy, tag_store.moves)
        self._log = ThrottledLog(log, context.clock, burst=1, interval=_LOG_INTERVAL_S)
        # When the running checks began, on the event loop's clock.
        self._check_started: dict[tuple[Repository, Tag], float] = {}
        self._checks: GuardedSingleFlight[tuple[ManifestAnswer, float]] = GuardedSingleFlight(context.in_use)

    async def get(self, repository: Repository, tag: Tag, *, head: bool) -> tuple[ManifestAnswer, float]:
        """The manifest that a tag names, and when that expires; raises like `Manifests.get`."""
        answer, expires = await self._get(repository, tag, head=head)
        held_back = self.moves.pending(repository, tag)
        if not isinstance(held_back, Keep) or held_back.digest == answer.digest:
            return answer, expires
        return replace(answer, held_back=held_back), expires if held_back.until is None else min(expires, held_back.until)

    async def _get(self, repository: Repository, tag: Tag, *, head: bool) -> tuple[ManifestAnswer, float]:
        decision = self.decide(repository, tag)
        request = _Request(repository, tag, None if isinstance(decision, Unknown) else decision.record, head)
        if isinstance(decision, Fresh):
            expires = decision.record.checked + self._context.policies.for_tag(repository, tag).ttl
            return await self._serve_fresh(request, decision.record), expires
        try:
            self._content.raise_if_negative("manifest", repository, tag)
            if request.record is None:
                self.moves.raise_if_refused(repository, tag)
            return await self._revalidate(request)
        except (UpstreamError, UpstreamRefusal) as error:
            stale = await self._find_stale(request, self.stale_reason(repository, error), error)
            stale = stale or await self._restore(request, error)
            if stale is not None:
                return stale, 0.0
            self._raise_if_absent(request, error)
            raise

    def decide(self, repository: Repository, tag: Tag) -> Decision:
        """Whether a pull of a tag serves its record, checks it, or has none."""
        ttl = self._context.policies.for_tag(repository, tag).ttl
        decision = decide(self._tag_store.get(repository, tag), self._context.clock(), ttl)
        if isinstance(decision, Fresh) and self.moves.is_mature(repository, tag):
            return Due(decision.record)
        return decision

    def allows_stale(self, repository: Repository, tag: Tag, record: TagRecord | None, reason: str) -> bool:
        """Whether the record of a tag may be served although upstream failed for a reason, if its image is held complete."""
        context = self._context
        max_age = context.policies.for_tag(repository, tag).stale_if_error
        # A denial is newer than the record.
        return record is not None and not record.denied and may_serve(reason, context.clock() - record.checked, max_age)

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._checks.close()

    async def _serve_fresh(self, request: _Request, record: TagRecord) -> ManifestAnswer:
        self._pull_policy.check_content(request.repository, record.digest)
        cached = await self._by_digest.find_cached(request.repository, record.digest)
        if cached is not None:
            return cached
        if request.head:
            return ManifestAnswer(record.digest, record.media_type, record.size, None, Outcome.HIT)
        return await self._kept.fetch(request.repository, request.tag, record.digest)

    async def _revalidate(self, request: _Request) -> tuple[ManifestAnswer, float]:
        """Wait for a check; after `revalidate_timeout` of the check, answer with a held image while the check continues."""
        if request.record is None:
            return await self._shared_check(request)
        now, limit = asyncio.get_running_loop().time(), self._context.policies.general.revalidate_timeout
        check = asyncio.create_task(self._shared_check(request))
        try:
            started = self._check_started.get((request.repository, request.tag), now)
            await asyncio.wait([check], timeout=max(0.0, started + limit - now))
            late = UpstreamTimeout(f"upstream has been asked for {request.repository} {request.tag} for more than {limit:g} s")
            stale = None if check.done() else await self._find_stale(request, SLOW, late)
            return await check if stale is None else (stale, 0.0)
        finally:
            # Ends this wait only: the check is shared.
            check.cancel()

    async def _shared_check(self, request: _Request) -> tuple[ManifestAnswer, float]:
        """Run or join the check of a tag."""
        # A HEAD of an unknown tag has a check of its own: it must not cost a pull.
        key = (request.repository, request.tag, request.head and request.record is None)
        (answer, expires), joined = await self._checks.run(key, lambda: self._timed_check(request))
        if answer.raw is None and not request.head:
            answer = await self._kept.fetch(request.repository, request.tag, answer.digest)
        elif joined:
            answer = replace(answer, outcome=Outcome.JOINED)
        return answer, expires

    async def _timed_check(self, request: _Request) -> tuple[ManifestAnswer, float]:
        """Run a check; requests that join it learn when it began."""
        key = request.repository, request.tag
        started = self._check_started[key] = asyncio.get_running_loop().time()
        try:
            return await self._check(request)
        finally:
            if self._check_started.get(key) == started:
                del self._check_started[key]

    async def _check(self, request: _Request) -> tuple[ManifestAnswer, float]:
        """Ask upstream what a tag names, update its record, and return the manifest and when it expires.

        The record changes only after the manifest can be served. The check is a HEAD: that costs no pull, and the GET by digest
        that follows is shared with requests for the digest and for other tags of the image. An unknown tag that a client GETs
        is fetched at once if that may cost one more pull, and no digest is denied.
        """
        if request.record is None and not request.head and self._spares_head(request):
            return await self._fetch_unknown(request)
        if request.record is None:
            request = replace(request, record=await self._tag_store.recall(request.repository, request.tag))
        ttl = self._context.policies.for_tag(request.repository, request.tag).ttl
        check = await self.upstream.check(request.repository, request.tag, ttl, self._valid_since(request))
        return await self._record(request, await self._answer_check(request, check.head), check.asked)

    def _valid_since(self, request: _Request) -> float:
        """The time before which no check of a tag counts: that of a purge, or of a refusal."""
        refused = self._context.store.index.tags.refused_at(request.repository, request.tag)
        return refused if request.record is None else max(refused, request.record.due)

    def _spares_head(self, request: _Request) -> bool:
        """Whether a GET needs no HEAD before it, which would save a pull, or name a denied digest."""
        if self._context.cluster is not None and not self._context.cluster.is_alone:
            # The nodes of a cluster share the GET by digest.
            return False
        if self._context.objects is not None and self._context.objects.is_up:
            # The bucket may have what the HEAD names.
            return False
        if self._context.policies.hold_rule(request.repository, request.tag) is not None:
            # The move may be held back.
            return False
        return not self._pull_policy.denies_digests and self._context.registry(request.repository).has_plenty_of_pulls()

    async def _fetch_unknown(self, request: _Request) -> tuple[ManifestAnswer, float]:
        """Fetch an unknown tag, once for all processes."""
        repository, tag = request.repository, request.tag
        async with self._context.store.turns.turn(Digest.of(f"{repository}:{tag}".encode())):
            record = self._tag_store.get(repository, tag)
            if record is not None:
                answer = await self._by_digest.get(repository, record.digest, head=False)
                expires = record.checked + self._context.policies.for_tag(repository, tag).ttl
                return replace(answer, outcome=Outcome.JOINED), expires
            asked = self._context.clock()
            return await self._record(request, await self._fetch_by_tag(request), asked)

    async def _record(self, request: _Request, answer: ManifestAnswer, asked: float) -> tuple[ManifestAnswer, float]:
        """Update the record of a tag with what a check that began at `asked` has found; the manifest, and when it expires."""
        repository, tag = request.repository, request.tag
        if answer.outcome is Outcome.BYPASS:
            return answer, 0.0
        expected = None if request.record is None else request.record.digest
        record = await self._tag_store.update(repository, tag, answer, expected=expected, asked=asked)
        is_latest = record is not None and record.digest == answer.digest
        return answer, asked + self._context.policies.for_tag(repository, tag).ttl if is_latest else 0.0

    async def _answer_check(self, request: _Request, head: ManifestHead) -> ManifestAnswer:
        """The manifest that upstream's HEAD has named: known, of a HEAD without its bytes, or fetched."""
        repository, record = request.repository, request.record
        if head.digest is None:
            return await self._fetch_by_tag(request)
        kept = await self._kept.find(repository, request.tag, record, head.digest)
        if kept is not None:
            return kept
        self._pull_policy.check_content(repository, head.digest)
        if record is not None and head.digest == record.digest:
            return await self._kept.recorded(repository, record)
        if request.head and record is None and head.media_type is not None and head.size is not None:
            return ManifestAnswer(head.digest, head.media_type, head.size, None, Outcome.MISS)
        try:
            answer = await self._by_digest.get(repository, head.digest, head=False)
        except NotFound:
            # The tag has moved since the HEAD, or the HEAD was wrong.
            return await self._fetch_by_tag(request)
        return replace(answer, outcome=_OUTCOME_OF_CHECK.get(answer.outcome, answer.outcome))

    async def _fetch_by_tag(self, request: _Request) -> ManifestAnswer:
        answer = await self._by_digest.fetch(request.repository, request.tag)
        kept = await self._kept.find(request.repository, request.tag, request.record, answer.digest)
        if kept is not None:
            return kept
        self._pull_policy.check_content(request.repository, answer.digest)
        return answer

    def _raise_if_absent(self, request: _Request, error: UpstreamError | UpstreamRefusal) -> None:
        """Raise NotFound if upstream cannot be asked and last had no such signature: verifiers need that answer."""
        since = self._context.store.index.attachments.absent_since(request.repository, request.tag)
        if since is None or not isinstance(error, UpstreamError):
            return
        if may_serve(error.reason, self._context.clock() - since, self._context.policies.general.stale_if_error):
            raise NotFound(f"upstream said last that it does not have {request.repository} {request.tag}") from error

    async def _find_stale(self, request: _Request, reason: str, error: MirrorError) -> ManifestAnswer | None:
        """The recorded manifest, if the reason allows a stale answer and the image is held complete."""
        context, repository, record = self._context, request.repository, request.record
        if record is None or not self.allows_stale(repository, request.tag, record, reason):
            return None
        self._pull_policy.check_content(repository, record.digest)
        cached = await self._by_digest.find_cached(repository, record.digest)
        if cached is None or not await context.in_thread(is_complete, context.store.files, record.digest):
            return None
        context.metrics.stale_served.labels(repository.registry, reason).inc()
        self._log_stale(request, reason, error)
        return replace(cached, outcome=Outcome.STALE, reason=reason)

    async def _restore(self, request: _Request, error: UpstreamError | UpstreamRefusal) -> ManifestAnswer | None:
        """The manifest that an unknown tag named last, according to other nodes or the bucket, if a stale answer is allowed."""
        repository, tag = request.repository, request.tag
        if request.record is not None or not isinstance(error, UpstreamError):
            return None
        record = await self.upstream.last_known(repository, tag)
        if record is None or not self.allows_stale(repository, tag, record, error.reason):
            return None
        if record.checked <= self._context.store.index.tags.refused_at(repository, tag):
            return None
        self._pull_policy.check_content(repository, record.digest)
        answer = await self._by_digest.restore(repository, record)
        if answer is None:
            return None
        self._context.metrics.stale_served.labels(repository.registry, error.reason).inc()
        self._log_stale(request, error.reason, error)
        return replace(answer, outcome=Outcome.STALE, reason=error.reason)

    def stale_reason(self, repository: Repository, error: UpstreamError | UpstreamRefusal) -> str:
        """The reason for which a failure or refusal of upstream may let the record be served."""
        if isinstance(error, UpstreamError):
            return error.reason
        if isinstance(error, AccessDenied):
            return "denied"
        return DELETED if repository.registry in self._context.policies.keep_deleted else "not_found"

    def _log_stale(self, request: _Request, reason: str, error: MirrorError) -> None:
        fields = {"repository": str(request.repository), "tag": str(request.tag), "reason": reason}
        key = f"{request.repository.registry} {reason}"
        self._log.log("warning", "stale_served", key, **fields, said=TABLE[reason].said, cause=str(error))
