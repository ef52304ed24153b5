"""What may be pulled, by the policies of the registries and what the index knows."""

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
# What an entry takes in memory, roughly.
_ENTRY_BYTES: Final = 300
# Manifests that are looked at to find one that may be pulled. If as many may not, the others will hardly be better.
_MAX_LOOKED_AT: Final = 1000
# Indexes nest two deep in practice.
_MAX_DEPTH: Final = 4


class PullPolicy:
    """Holds what clients ask for against the policies, before anything else is done about it.

    A digest is refused if a rule of any registry names it, if its repository is refused, or if all that is known to name it
    there is: tags, and manifests, which are held against the same rules.

    Args:
        policies: by registry.
    """

    def __init__(self, context: Context, policies: Mapping[str, Policy]) -> None:
        self._context = context
        self._policies = policies
        self._denied = {rule.digest: f"deny: {rule}" for policy in policies.values() for rule in policy.digests}
        # Digests that were found to be allowed; no more is known of what names them until the generation changes.
        self._allowed: GenerationCache[bool] = GenerationCache(context.store.generation, _MAX_ENTRIES)

    async def check(self, repository: Repository, reference: Reference | None) -> None:
        """Return if it may be pulled; without a reference, if anything of the repository may.

        Raises:
            PolicyDenied: it may not.
        """
        policy = self._policies.get(repository.registry)
        if policy is None:
            return
        digest = _content_of(reference)
        rule = _refused_by_name(policy, repository, reference)
        if rule is None and digest is not None and self._names_matter(policy, repository):
            rule = await self._look_up(policy, repository, digest)
        if rule is not None:
            what = repository if reference is None else f"{repository} {reference}"
            raise PolicyDenied(f"{what} may not be pulled through this mirror", rule)

    def is_constant(self, repository: Repository, reference: Reference | None) -> bool:
        """Whether what `check` has let pass may be pulled for as long as nothing is configured anew."""
        return _content_of(reference) is None or not self.looks_at_names(repository)

    def is_cached(self, repository: Repository | None, reference: Reference | None) -> bool:
        """Whether a digest that `check` has let pass needs no other look. Costs a microsecond."""
        return self._allowed.get((repository, _content_of(reference)), 0.0) is not None

    def check_content(self, repository: Repository, digest: Digest) -> None:
        """Return unless a rule names a digest that upstream, or what is known, stands for under an allowed name.

        Raises:
            PolicyDenied: one does.
        """
        rule = self._denied.get(digest)
        if rule is not None:
            raise PolicyDenied(f"{repository} leads to {digest}, which may not be pulled through this mirror", rule)

    def looks_at_names(self, repository: Repository) -> bool:
        """Whether it makes a difference to a digest of this repository what names it."""
        policy = self._policies.get(repository.registry)
        return policy is not None and self._names_matter(policy, repository)

    def may_list(self, repository: Repository, tag: Tag) -> bool:
        """Whether a tag may be named in a list: whether it may be pulled."""
        policy = self._policies.get(repository.registry)
        if policy is None or _refused_by_name(policy, repository, tag) is not None:
            return False
        record = self._context.store.index.tag(repository, tag) if self._denied else None
        return record is None or record.digest not in self._denied

    def filter_tags(self, repository: Repository, tags: list[str]) -> list[str]:
        """Those of upstream's tags that may be named; what is no tag cannot be pulled, either."""
        policy = self._policies.get(repository.registry)
        if policy is None or not self._names_matter(policy, repository):
            return tags
        index = self._context.store.index
        denied = {tag for digest in self._denied for tag in index.tags_naming(repository, digest)}
        return [
            text
            for text in tags
            if (tag := _tag(text)) is not None and tag not in denied and _refused_by_name(policy, repository, tag) is None
        ]

    def _names_matter(self, policy: Policy, repository: Repository) -> bool:
        return bool(self._denied) or policy.looks_at_tags(repository.path)

    async def _look_up(self, policy: Policy, repository: Repository, digest: Digest) -> str | None:
        key, generation = (repository, digest), self._allowed.generation()
        if self._allowed.get(key, 0.0):
            return None
        question = _Question(self._context, policy, repository, self._denied)
        rule = await self._context.in_thread(question.refuses, digest)
        if rule is None:
            self._allowed.put(key, True, _ENTRY_BYTES, math.inf, generation)
        return rule


@dataclass(slots=True)
class _Question:
    """By which rule something must not be pulled by its digest. Reads the index.

    Attributes:
        answers: for the manifests that have been looked at.
    """

    context: Context
    policy: Policy
    repository: Repository
    denied: Mapping[Digest, str]
    answers: dict[Digest, str | None] = field(default_factory=dict)

    def refuses(self, digest: Digest, depth: int = 0) -> str | None:
        """The rule, in words; None if it may be pulled, or if nothing is known of it."""
        rule = self.denied.get(digest) or self.policy.refuses_repository(self.repository.path)
        if rule is not None:
            return rule
        tags = self.context.store.index.tags_naming(self.repository, digest)
        rule = self.policy.refuses_digest(self.repository.path, tags)
        if (tags and rule is None) or depth >= _MAX_DEPTH:
            return rule
        for kind in _KINDS:
            for manifest in self.context.store.index.parts.naming(kind, self.repository, digest):
                if manifest not in self.answers:
                    if len(self.answers) >= _MAX_LOOKED_AT:
                        return rule
                    self.answers[manifest] = self.refuses(manifest, depth + 1)
                found = self.answers[manifest]
                if found is None:
                    return None
                rule = rule or found
        return rule


def _content_of(reference: Reference | None) -> Digest | None:
    """The digest by which a reference is judged. Signatures may be had with what they are about, whatever tags are allowed."""
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
