"""Applies the configured `allow` and `deny` rules to requests and lists, with the tags and manifests that the index knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mirror.cache.context import Context
from mirror.cache.generation_cache import GenerationCache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidTag
from mirror.core.names import Reference, Repository, Tag
from mirror.core.policy import Policy
from mirror.core.signatures import subject_of
from mirror.errors import PolicyDenied

_KINDS: Final = ("manifest", "blob")
_MAX_ENTRIES: Final = 50_000
# The approximate memory of an entry.
_ENTRY_BYTES: Final = 300
# Bounds the search for one allowed manifest that names a digest.
_MAX_MANIFESTS: Final = 1000
# Indexes nest two deep in practice.
_MAX_DEPTH: Final = 4


class PullPolicy:
    """Decides what clients may pull, before anything else is done for a request.

    A digest is refused if a rule of any registry names it, if its repository is refused, or if every tag and manifest that is
    known to name it there is refused. The same rules apply to those manifests.

    Args:
        policies: by registry.
    """

    def __init__(self, context: Context, policies: Mapping[str, Policy]) -> None:
        self._context = context
        self._policies = policies
        self._denied = {rule.digest: f"deny: {rule}" for policy in policies.values() for rule in policy.digests}
        # Allowed digests. What names a digest stays the same until the generation changes.
        self._allowed: GenerationCache[bool] = GenerationCache(context.store.generation, _MAX_ENTRIES)

    async def check(self, repository: Repository, reference: Reference | None) -> None:
        """Return if a reference may be pulled; without one, if anything of the repository may.

        Raises:
            PolicyDenied: it may not be pulled.
        """
        policy = self._policies.get(repository.registry)
        if policy is None:
            return
        digest = _digest_of(reference)
        rule = _refused_by_name(policy, repository, reference)
        if rule is None and digest is not None and self._names_matter(policy, repository):
            rule = await self._look_up(policy, repository, digest)
        if rule is not None:
            what = repository if reference is None else f"{repository} {reference}"
            raise PolicyDenied(f"{what} may not be pulled through this mirror", rule)

    def rule(self, repository: Repository, reference: Reference) -> str:
        """The rule by which an allowed reference may be pulled, in words."""
        policy, tag = self._policies.get(repository.registry), reference if isinstance(reference, Tag) else None
        admitted = None if policy is None else policy.admits(repository.path, tag)
        return admitted or "no rule of `deny` covers it"

    def is_constant(self, repository: Repository, reference: Reference | None) -> bool:
        """Whether the result of `check` stays the same until a reload."""
        policy = self._policies.get(repository.registry)
        return _digest_of(reference) is None or policy is None or not self._names_matter(policy, repository)

    def is_cached(self, repository: Repository | None, reference: Reference | None) -> bool:
        """Whether `check` has allowed a digest and would do so again. Takes a microsecond."""
        return self._allowed.get((repository, _digest_of(reference)), 0.0) is not None

    @property
    def denies_digests(self) -> bool:
        """Whether a rule names a digest."""
        return bool(self._denied)

    def check_content(self, repository: Repository, digest: Digest) -> None:
        """Check the digest that an allowed name stands for.

        Raises:
            PolicyDenied: a rule names it.
        """
        rule = self._denied.get(digest)
        if rule is not None:
            raise PolicyDenied(f"{repository} leads to {digest}, which may not be pulled through this mirror", rule)

    def may_list(self, repository: Repository, tag: Tag) -> bool:
        """Whether a list may contain a tag, which is whether it may be pulled."""
        policy = self._policies.get(repository.registry)
        if policy is None or _refused_by_name(policy, repository, tag) is not None:
            return False
        record = self._context.store.index.tags.get(repository, tag) if self._denied else None
        return record is None or record.digest not in self._denied

    def filter_tags(self, repository: Repository, tags: list[str]) -> list[str]:
        """The tags of upstream's list that may be pulled, without malformed ones."""
        policy = self._policies.get(repository.registry)
        if policy is None or not self._names_matter(policy, repository):
            return tags
        index = self._context.store.index
        denied = {tag for digest in self._denied for tag in index.tags.naming(repository, digest)}
        return [
            text
            for text in tags
            if (tag := _tag(text)) is not None and tag not in denied and _refused_by_name(policy, repository, tag) is None
        ]

    def _names_matter(self, policy: Policy, repository: Repository) -> bool:
        """Whether the decision about a digest depends on the tags and manifests that name it."""
        return bool(self._denied) or policy.looks_at_tags(repository.path)

    async def _look_up(self, policy: Policy, repository: Repository, digest: Digest) -> str | None:
        key, generation = (repository, digest), self._allowed.generation()
        if self._allowed.get(key, 0.0):
            return None
        search = _RuleSearch(self._context, policy, repository, self._denied)
        rule = await self._context.in_thread(search.find, digest)
        if rule is None:
            self._allowed.put(key, True, _ENTRY_BYTES, math.inf, generation)
        return rule


@dataclass(slots=True)
class _RuleSearch:
    """Searches the index for the rule that refuses a digest.

    Attributes:
        found: the rules of the manifests that were searched; None for an allowed one.
    """

    context: Context
    policy: Policy
    repository: Repository
    denied: Mapping[Digest, str]
    found: dict[Digest, str | None] = field(default_factory=dict)

    def find(self, digest: Digest, depth: int = 0) -> str | None:
        """The rule as text; None if the digest is allowed or nothing names it."""
        rule = self.denied.get(digest) or self.policy.refuses_repository(self.repository.path)
        if rule is not None:
            return rule
        tags = self.context.store.index.tags.naming(self.repository, digest)
        rule = self.policy.refuses_digest(self.repository.path, tags)
        if (tags and rule is None) or depth >= _MAX_DEPTH:
            return rule
        for kind in _KINDS:
            for manifest in self.context.store.index.parts.naming(kind, self.repository, digest):
                if manifest not in self.found:
                    if len(self.found) >= _MAX_MANIFESTS:
                        return rule
                    self.found[manifest] = self.find(manifest, depth + 1)
                found = self.found[manifest]
                if found is None:
                    return None
                rule = rule or found
        return rule


def _digest_of(reference: Reference | None) -> Digest | None:
    """The digest that decides about a reference. A signature's tag stands for its subject, whatever tags are allowed."""
    return subject_of(reference) if isinstance(reference, Tag) else reference


def _refused_by_name(policy: Policy, repository: Repository, reference: Reference | None) -> str | None:
    if not isinstance(reference, Tag):
        return policy.refuses_repository(repository.path)
    if subject_of(reference) is None:
        return policy.refuses_tag(repository.path, reference)
    return policy.refuses_repository(repository.path) or policy.denies(repository.path, reference)


def _tag(text: str) -> Tag | None:
    try:
        return Tag.parse(text)
    except InvalidTag:
        return None
