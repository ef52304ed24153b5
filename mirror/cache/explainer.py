"""Explains one image: what is held of it, which rules apply to it, and what a pull would do now. Nothing is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.last_answers import LastAnswer, Trouble
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.manifest_by_tag import ManifestByTag
from mirror.cache.new_digests import DigestAges
from mirror.cache.pull_policy import PullPolicy
from mirror.core.digest import Digest
from mirror.core.freshness import Due, Fresh, TagRecord, Unknown
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.signatures import subject_of
from mirror.core.tag_moves import HoldRule, Keep, Refuse, until
from mirror.errors import Offline, PolicyDenied, UpstreamRefusal, UpstreamUnreachable
from mirror.storage.history import Miss
from mirror.storage.inventory import StoredManifest, inventory

if TYPE_CHECKING:
    # Imported only where there is a rule of `trust`.
    from mirror.cache.trust_gate import TrustFacts


class Action(StrEnum):
    """What a pull of a manifest does first."""

    SERVE = "serve"
    CHECK = "check"
    FETCH = "fetch"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a pull of the manifest would do now.

    Attributes:
        outcome: the expected one; None for a refusal.
        stale_until: until when the held image is served while upstream cannot be asked, in seconds since the epoch; None if
            the answer is an error then.
    """

    action: Action
    outcome: Outcome | None
    why: str
    stale_until: float | None = None


@dataclass(frozen=True, slots=True)
class TagFacts:
    """What is recorded of a tag, and the rule that applies to it.

    Attributes:
        ttl: infinite if the registry is offline.
        rule: the key of the configuration that sets the ttl.
        fresh_until: seconds since the epoch; 0 if the next pull checks it.
        hold_rule: how its moves are held back; None if they are followed.
        held_back: what it names upstream, if that is held back.
    """

    record: TagRecord | None
    ttl: float
    rule: str
    pinned: bool
    fresh_until: float
    hold_rule: HoldRule | None
    held_back: Keep | Refuse | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of an image.

    Attributes:
        digest: what the reference names here; None if that is not known.
        policy: the rule of `allow` or `deny` that decides.
        tag: None for a digest.
        manifests: what is held, by platform.
        pulled: the last pull by a client, in seconds since the epoch; 0 if none is known.
        last: the last answer of this process; None if it gave none of late.
        miss: the last time that a client had it fetched, in any process, and why; None if there was none within 30 days.
        trust: what is known of its signatures; None without a rule of `trust`.
    """

    repository: Repository
    reference: Reference
    digest: Digest | None
    policy: str
    tag: TagFacts | None
    manifests: list[StoredManifest]
    pulled: float
    last: LastAnswer | None
    miss: Miss | None
    trust: TrustFacts | None
    forecast: Forecast


class Explainer:
    """Asks the same parts that answer pulls, and sends no request upstream. Use it from the event loop's thread only."""

    def __init__(
        self,
        context: Context,
        content: CachedContent,
        pull_policy: PullPolicy,
        by_digest: ManifestByDigest,
        by_tag: ManifestByTag,
    ) -> None:
        self._context = context
        self._content = content
        self._pull_policy = pull_policy
        self._by_digest = by_digest
        self._by_tag = by_tag

    async def explain(self, repository: Repository, reference: Reference) -> Explanation:
        """Explain an image. Raises NotFound if its registry is not mirrored."""
        context = self._context
        context.registry(repository)
        facts = self._tag_facts(repository, reference) if isinstance(reference, Tag) else None
        digest = reference if isinstance(reference, Digest) else (facts.record.digest if facts and facts.record else None)
        manifests = [] if digest is None else await context.in_thread(inventory, context.store.files, digest)
        try:
            await self._pull_policy.check(repository, reference)
            if digest is not None:
                self._pull_policy.check_content(repository, digest)
            policy = self._pull_policy.rule(repository, reference)
            trust = await self._trust_facts(repository, reference, digest)
            forecast = _refused_by(trust) or await self._forecast(repository, reference, facts, manifests)
        except PolicyDenied as error:
            policy, trust, forecast = error.rule, None, Forecast(Action.REFUSE, None, f"answered 403: {error.rule}")
        pulled, last = self._last_pull(repository, reference, digest)
        miss = context.store.index.history.miss(repository, reference)
        return Explanation(repository, reference, digest, policy, facts, manifests, pulled, last, miss, trust, forecast)

    def troubles(self) -> list[Trouble]:
        """Return the last failed pulls of this process. May be called in any thread."""
        return self._context.last_answers.troubles()

    async def _trust_facts(self, repository: Repository, reference: Reference, digest: Digest | None) -> TrustFacts | None:
        gate = self._by_tag.moves.trust
        if gate is None or (isinstance(reference, Tag) and subject_of(reference) is not None):
            return None
        return await self._context.in_thread(gate.facts, repository, digest)

    def _tag_facts(self, repository: Repository, tag: Tag) -> TagFacts:
        policies, decision = self._context.policies, self._by_tag.decide(repository, tag)
        rule, ttl = policies.rule_for(repository, tag), policies.for_tag(repository, tag).ttl
        key = "tags.ttl"
        if repository.registry in policies.offline:
            key = "offline"
        elif rule is not None and rule.ttl is not None:
            key = f"registries.{repository.registry}.tags, match {rule.pattern}"
        record = None if isinstance(decision, Unknown) else decision.record
        fresh_until = decision.record.checked + ttl if isinstance(decision, Fresh) else 0.0
        hold_rule, held_back = policies.hold_rule(repository, tag), self._by_tag.moves.pending(repository, tag)
        return TagFacts(record, ttl, key, policies.is_pinned(repository, tag), fresh_until, hold_rule, held_back)

    def _last_pull(self, repository: Repository, reference: Reference, digest: Digest | None) -> tuple[float, LastAnswer | None]:
        context = self._context
        written = 0.0
        if isinstance(reference, Tag):
            record = context.store.index.tags.get(repository, reference)
            written = max(context.store.index.tags.pulls(repository, reference).last, record.pulled if record else 0.0)
        elif digest is not None:
            written = context.store.files.used(digest) or 0.0
        pulled, last = max(written, context.usage.last(repository, reference)), context.last_answers.get(repository, reference)
        # A HIT from memory is not noted as an answer.
        if last is not None and last.outcome is not None and context.usage.last(repository, reference) > last.when:
            last = LastAnswer(Outcome.HIT, context.usage.last(repository, reference))
        return pulled, last

    # ---- what a pull would do

    async def _forecast(
        self, repository: Repository, reference: Reference, facts: TagFacts | None, manifests: list[StoredManifest]
    ) -> Forecast:
        if isinstance(reference, Digest):
            refused = await self._context.in_thread(self._forecast_new_digest, repository, reference)
            return refused or await self._forecast_digest(repository, reference)
        if facts is not None and facts.record is None and facts.held_back is not None:
            return _refused_held_back(facts.held_back)
        decision = self._by_tag.decide(repository, reference)
        if isinstance(decision, Fresh):
            served = await self._forecast_digest(repository, decision.record.digest)
            if served.action is Action.SERVE:
                return Forecast(Action.SERVE, Outcome.HIT, "served from the store: the last check is younger than the ttl")
            return served
        record = facts.record if facts is not None else None
        is_complete = any(manifest.is_complete for manifest in manifests)
        if self._context.registry(repository).is_offline:
            if is_complete and self._by_tag.allows_stale(repository, reference, record, Offline.reason):
                return Forecast(Action.SERVE, Outcome.STALE, f"served from the store: {repository.registry} is offline here")
            return _refused_offline("the tag is not held", repository)
        try:
            self._content.raise_if_negative("manifest", repository, reference)
        except UpstreamRefusal as error:
            return self._forecast_refusal(repository, reference, record, error, is_complete=is_complete)
        stale_until = self._stale_until(repository, reference, record) if is_complete else None
        return self._forecast_check(repository, decision, stale_until)

    def _forecast_new_digest(self, repository: Repository, digest: Digest) -> Forecast | None:
        """The refusal of a digest that has not cooled down; None if it may be pulled."""
        ages = DigestAges(self._context)
        if ages.admits(repository, digest):
            return None
        refusal = ages.refusal(repository, digest)
        never_seen = "cooldown_new: it was never seen here; a pull asks upstream for it, and begins its cool-down"
        return Forecast(Action.REFUSE, None, f"answered 403: {never_seen if refusal is None else refusal.rule}")

    async def _forecast_digest(self, repository: Repository, digest: Digest) -> Forecast:
        if await self._by_digest.find_cached(repository, digest) is not None:
            return Forecast(Action.SERVE, Outcome.HIT, "served from the store: a digest never expires")
        try:
            self._content.raise_if_negative("manifest", repository, digest)
        except UpstreamRefusal as error:
            return Forecast(Action.REFUSE, None, str(error))
        if self._context.registry(repository).is_offline:
            return _refused_offline("the manifest is not held", repository)
        if await self._content.read_manifest(repository, digest) is not None:
            why = "held for another repository: upstream is asked by HEAD whether this one has it"
            return Forecast(Action.CHECK, Outcome.REVALIDATED, why)
        before = "" if self._context.objects is None else "read from the bucket, or else "
        why = f"not held: {before}fetched from upstream by its digest"
        return Forecast(Action.FETCH, Outcome.MISS, self._with_obstacle(repository, why, "GET"))

    def _forecast_refusal(
        self, repository: Repository, tag: Tag, record: TagRecord | None, error: UpstreamRefusal, *, is_complete: bool
    ) -> Forecast:
        reason = self._by_tag.stale_reason(repository, error)
        if is_complete and self._by_tag.allows_stale(repository, tag, record, reason):
            return Forecast(Action.SERVE, Outcome.STALE, f"served from the store, although {error}")
        return Forecast(Action.REFUSE, None, str(error))

    def _forecast_check(self, repository: Repository, decision: Due | Unknown, stale_until: float | None) -> Forecast:
        registry = self._context.registry(repository)
        if isinstance(decision, Unknown):
            why = "the tag is not known here: upstream is asked"
            return Forecast(Action.FETCH, Outcome.MISS, self._with_obstacle(repository, why, "GET"))
        if stale_until is not None and registry.next_upstream("manifest", "HEAD") is None:
            why = self._with_obstacle(repository, "the last check is older than the ttl, and the held image is complete", "HEAD")
            return Forecast(Action.SERVE, Outcome.STALE, why, stale_until)
        why = "the last check is older than the ttl: upstream is asked by HEAD whether the tag has moved"
        return Forecast(Action.CHECK, Outcome.REVALIDATED, self._with_obstacle(repository, why, "HEAD"), stale_until)

    def _stale_until(self, repository: Repository, tag: Tag, record: TagRecord | None) -> float | None:
        """Until when a record is served while no connection to upstream can be made; None if it is not."""
        if record is None or not self._by_tag.allows_stale(repository, tag, record, UpstreamUnreachable.reason):
            return None
        return record.checked + self._context.policies.for_tag(repository, tag).stale_if_error

    def _with_obstacle(self, repository: Repository, why: str, method: str) -> str:
        registry = self._context.registry(repository)
        if registry.next_upstream("manifest", method) is not None:
            return why
        states = ", ".join(f"{upstream.name} is {upstream.state}" for upstream in registry.upstreams)
        return f"{why}; no upstream may be asked now: {states}"


def _refused_held_back(held_back: Keep | Refuse) -> Forecast:
    if isinstance(held_back, Refuse):
        return Forecast(Action.REFUSE, None, f"answered 403: cooldown_new refuses {held_back.digest} {until(held_back)}")
    why = f"answered 503: {held_back.digest} is held back {until(held_back)}, and what the tag named before was purged"
    return Forecast(Action.REFUSE, None, why)


def _refused_by(trust: TrustFacts | None) -> Forecast | None:
    """The refusal by a verdict that is known; None without one."""
    refusal = None if trust is None else trust.refusal
    return None if refusal is None else Forecast(Action.REFUSE, None, f"answered 403: {refusal}")


def _refused_offline(why: str, repository: Repository) -> Forecast:
    return Forecast(Action.REFUSE, None, f"answered 404: {why}, and {repository.registry} is offline here")
