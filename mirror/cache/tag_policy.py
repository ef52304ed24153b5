"""The configured policies of tags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mirror.config.model import Config
from mirror.config.sections import TagRuleConfig
from mirror.core.names import PathPattern, Repository, Tag
from mirror.core.signatures import subject_of
from mirror.core.tag_moves import HoldRule


@dataclass(frozen=True)
class TagPolicy:
    """Lifetimes of answers about tags, in seconds.

    Attributes:
        ttl: a checked tag is served this long without asking upstream.
        stale_if_error: a tag checked at most this long ago is served while upstream cannot be asked.
        not_found_ttl: a refusal is repeated this long without asking upstream.
        revalidate_timeout: the longest wait for the check of a tag whose image is held complete.
    """

    ttl: float = 60.0
    stale_if_error: float = 30 * 86400.0
    not_found_ttl: float = 30.0
    revalidate_timeout: float = 3.0


@dataclass(frozen=True)
class TagRule:
    """An exception for some tags of a registry.

    Attributes:
        ttl: seconds; None for the general one.
        pin: content that these tags need is evicted last.
        hold: how their moves are held back; None if they are followed.
    """

    pattern: PathPattern
    ttl: float | None = None
    pin: bool = False
    hold: HoldRule | None = None


@dataclass(frozen=True)
class TagPolicies:
    """The general policy, and the rules of each registry; the first rule that matches applies.

    Attributes:
        keep_deleted: registries whose 404 does not delete a held tag.
        offline: registries that are never asked: what is held of them does not expire.
        holding: registries with a rule that holds moves back.
    """

    general: TagPolicy = TagPolicy()
    rules: Mapping[str, tuple[TagRule, ...]] = field(default_factory=dict)
    keep_deleted: frozenset[str] = frozenset()
    offline: frozenset[str] = frozenset()
    holding: frozenset[str] = frozenset()

    @classmethod
    def configured(cls, config: Config) -> TagPolicies:
        """The policies of a configuration."""
        tags, entries = config.tags, config.registries.items()
        rules = {
            name: tuple(TagRule(PathPattern.parse(rule.match, name), rule.ttl, rule.pin, _hold_rule(rule)) for rule in entry.tags)
            for name, entry in entries
        }
        return cls(
            TagPolicy(tags.ttl, tags.stale_if_error, tags.not_found_ttl, tags.revalidate_timeout),
            rules,
            frozenset(name for name, entry in entries if entry.keep_deleted),
            config.offline_registries,
            frozenset(name for name, found in rules.items() if any(rule.hold is not None for rule in found)),
        )

    def for_tag(self, repository: Repository, tag: Tag) -> TagPolicy:
        """The policy for a tag. The ttl of a rule is that of images; their signatures may come at any time."""
        if repository.registry in self.offline:
            return replace(self.general, ttl=math.inf)
        rule = self.rule_for(repository, tag)
        if rule is None or rule.ttl is None or subject_of(tag) is not None:
            return self.general
        return replace(self.general, ttl=rule.ttl)

    def is_pinned(self, repository: Repository, tag: Tag) -> bool:
        """Whether content that a tag needs is evicted last."""
        rule = self.rule_for(repository, tag)
        return rule is not None and rule.pin

    def hold_rule(self, repository: Repository, tag: Tag) -> HoldRule | None:
        """How moves of a tag are held back; None if they are followed, as those of signatures are: their images are held back."""
        if repository.registry not in self.holding or subject_of(tag) is not None:
            return None
        rule = self.rule_for(repository, tag)
        return None if rule is None else rule.hold

    def has_cooldown(self, repository: Repository) -> bool:
        """Whether a tag of a repository may have a cool-down, so that the first sight of each manifest matters."""
        return any(rule.cooldown > 0 for rule in self._hold_rules(repository))

    def cooldown_of_new_digests(self, repository: Repository) -> float:
        """For how many seconds a manifest that was never seen in a repository is refused by its digest; 0 if it is served.

        A digest names no tag, so the longest cool-down counts that may apply to a tag of the repository.
        """
        return max((rule.cooldown for rule in self._hold_rules(repository) if rule.refuses_new), default=0.0)

    def _hold_rules(self, repository: Repository) -> list[HoldRule]:
        """The rules that may apply to a tag of a repository."""
        if repository.registry not in self.holding:
            return []
        found: list[HoldRule] = []
        for rule in self.rules.get(repository.registry, ()):
            if rule.pattern.matches_path(repository.path):
                found += [] if rule.hold is None else [rule.hold]
                if rule.pattern.tag in (None, "*"):
                    # It applies to all tags that are left.
                    break
        return found

    def rule_for(self, repository: Repository, tag: Tag) -> TagRule | None:
        """The rule of the registry that applies to a tag; None if only the general policy does."""
        rules = self.rules.get(repository.registry, ())
        return next((rule for rule in rules if rule.pattern.matches(repository.path, tag)), None)


def _hold_rule(rule: TagRuleConfig) -> HoldRule | None:
    if not rule.cooldown and not rule.freeze:
        return None
    return HoldRule(rule.cooldown, rule.cooldown_new == "refuse", rule.freeze)
