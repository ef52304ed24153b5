"""Which images of a registry may be pulled: rules over repositories and tags, and the one that spoke."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mirror.core.names import PathPattern, Tag

_NOT_ALLOWED: Final = "allow has no rule for it"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one registry. `deny` counts before `allow`; an empty `allow` is everything.

    What a digest names has no tag of its own. Rules with a tag part are held against the tags that are known to name it: it is
    refused if they all would be. If none is known, as for blobs and for the manifests of single platforms, such a rule of `deny`
    says nothing, and one of `allow` covers the whole repository: else nothing that it allows could be pulled. The tag part `*`
    is every tag, as if there were no tag part.
    """

    allow: tuple[PathPattern, ...] = ()
    deny: tuple[PathPattern, ...] = ()

    def refuses_tag(self, path: str, tag: Tag) -> str | None:
        """The rule by which a tag of a repository must not be pulled, in words; None if it may."""
        denied = next((rule for rule in self.deny if rule.matches(path, tag)), None)
        if denied is not None:
            return f"deny: {denied}"
        if self.allow and not any(rule.matches(path, tag) for rule in self.allow):
            return _NOT_ALLOWED
        return None

    def refuses_repository(self, path: str) -> str | None:
        """The rule by which nothing of a repository may be pulled, whatever its tag; None if something may."""
        denied = next((rule for rule in self.deny if _is_whole(rule) and rule.matches_path(path)), None)
        if denied is not None:
            return f"deny: {denied}"
        if self.allow and not any(rule.matches_path(path) for rule in self.allow):
            return _NOT_ALLOWED
        return None

    def refuses_digest(self, path: str, tags: Collection[Tag]) -> str | None:
        """The rule by which what a digest names must not be pulled, given the tags that are known to name it; None if it may."""
        refused = self.refuses_repository(path)
        if refused is not None or not tags:
            return refused
        words = [self.refuses_tag(path, tag) for tag in tags]
        return None if None in words else words[0]

    def looks_at_tags(self, path: str) -> bool:
        """Whether the tags that name a digest can make a difference to it."""
        return any(not _is_whole(rule) and rule.matches_path(path) for rule in (*self.deny, *self.allow))


def _is_whole(rule: PathPattern) -> bool:
    return rule.tag is None or rule.tag == "*"
