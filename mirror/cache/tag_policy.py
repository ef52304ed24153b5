"""What the use case needs to know of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mirror.core.names import PathPattern, Repository, Tag


@dataclass(frozen=True)
class TagPolicy:
    """How long answers about tags are good, in seconds.

    Attributes:
        ttl: a checked tag is served without asking upstream.
        stale_if_error: after `ttl`, it is still served while upstream cannot be asked.
        not_found_ttl: upstream's no is repeated without asking again.
        revalidate_timeout: after `ttl`, a client waits no longer for upstream if the image is held complete.
    """

    ttl: float = 60.0
    stale_if_error: float = 30 * 86400.0
    not_found_ttl: float = 30.0
    revalidate_timeout: float = 3.0


@dataclass(frozen=True)
class TagRule:
    """What is different for some tags of a registry.

    Attributes:
        ttl: seconds; None for the general one.
        pin: what these tags need is evicted last.
    """

    pattern: PathPattern
    ttl: float | None = None
    pin: bool = False


@dataclass(frozen=True)
class TagPolicies:
    """The general policy, and the rules of each registry, of which the first that matches counts.

    Attributes:
        keep_deleted: registries whose 404 does not take away what is held.
    """

    general: TagPolicy = TagPolicy()
    rules: Mapping[str, tuple[TagRule, ...]] = field(default_factory=dict)
    keep_deleted: frozenset[str] = frozenset()

    def of(self, repository: Repository, tag: Tag) -> TagPolicy:
        """The policy for a tag."""
        rule = self._rule(repository, tag)
        return self.general if rule is None or rule.ttl is None else replace(self.general, ttl=rule.ttl)

    def is_pinned(self, repository: Repository, tag: Tag) -> bool:
        """Whether what a tag needs is evicted last."""
        rule = self._rule(repository, tag)
        return rule is not None and rule.pin

    def _rule(self, repository: Repository, tag: Tag) -> TagRule | None:
        rules = self.rules.get(repository.registry, ())
        return next((rule for rule in rules if rule.pattern.matches(repository.path, tag)), None)
