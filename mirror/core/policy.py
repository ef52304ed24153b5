"""The rules that allow or deny pulls from a registry, by repository, tag and digest. Each decision names its rule."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from mirror.core.digest import Digest
from mirror.core.names import PathPattern, Tag

_NOT_ALLOWED: Final = "allow has no rule for it"


@dataclass(frozen=True, slots=True)
class DigestRule:
    """A rule of `deny` that names content. It applies in every repository, not only in the one that it names."""

    path: str
    digest: Digest

    @classmethod
    def parse(cls, text: str) -> DigestRule:
        """Read `REPOSITORY[:TAG]@DIGEST`; the tag is ignored. Raises InvalidName, InvalidTag or InvalidDigest."""
        name, _, digest = text.partition("@")
        return cls(str(PathPattern.parse(name)), Digest.parse(digest))

    def __str__(self) -> str:
        return f"{self.path}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one registry. `deny` has precedence over `allow`; an empty `allow` allows everything.

    A request for a digest names no tag. Rules with a tag part apply to the tags that are known to name the digest: it is refused
    if all of these tags are. If none is known, as for blobs and for the manifests of single platforms, such a rule of `deny` does
    not apply, and one of `allow` covers the whole repository; otherwise nothing that it allows could be pulled. The tag part `*`
    matches every tag, like a rule without a tag part.

    Attributes:
        digests: rules of `deny` that name digests; the caller compares them with the digest of the content.
    """

    allow: tuple[PathPattern, ...] = ()
    deny: tuple[PathPattern, ...] = ()
    digests: tuple[DigestRule, ...] = ()

    @classmethod
    def parse(cls, allow: Iterable[str], deny: Iterable[str], registry: str) -> Policy:
        """Read the rules of a registry. Raises InvalidName, InvalidTag or InvalidDigest."""
        names, digests = [], []
        for rule in deny:
            if "@" in rule:
                digests.append(DigestRule.parse(rule))
            else:
                names.append(PathPattern.parse(rule, registry))
        return cls(tuple(PathPattern.parse(rule, registry) for rule in allow), tuple(names), tuple(digests))

    def refuses_tag(self, path: str, tag: Tag) -> str | None:
        """The rule that refuses a tag of a repository, in words; None if the tag may be pulled."""
        denied = self.denies(path, tag)
        if denied is not None:
            return denied
        if self.allow and not any(rule.matches(path, tag) for rule in self.allow):
            return _NOT_ALLOWED
        return None

    def denies(self, path: str, tag: Tag) -> str | None:
        """The rule of `deny` that covers a tag of a repository, in words; None if none does."""
        denied = next((rule for rule in self.deny if rule.matches(path, tag)), None)
        return None if denied is None else f"deny: {denied}"

    def refuses_repository(self, path: str) -> str | None:
        """The rule that refuses every tag of a repository, in words; None if there is none."""
        denied = next((rule for rule in self.deny if _is_whole(rule) and rule.matches_path(path)), None)
        if denied is not None:
            return f"deny: {denied}"
        if self.allow and not any(rule.matches_path(path) for rule in self.allow):
            return _NOT_ALLOWED
        return None

    def refuses_digest(self, path: str, tags: Collection[Tag]) -> str | None:
        """The rule that refuses a digest, given the tags that are known to name it; None if the digest may be pulled."""
        refused = self.refuses_repository(path)
        if refused is not None or not tags:
            return refused
        words = [self.refuses_tag(path, tag) for tag in tags]
        return None if None in words else words[0]

    def admits(self, path: str, tag: Tag | None) -> str | None:
        """The rule of `allow` that covers a tag of a repository, or without a tag some of it, in words; None if none does."""
        rules = (rule for rule in self.allow if (rule.matches_path(path) if tag is None else rule.matches(path, tag)))
        admitted = next(rules, None)
        return None if admitted is None else f"allow: {admitted}"

    def looks_at_tags(self, path: str) -> bool:
        """Whether the decision about a digest depends on the tags that name it."""
        return any(not _is_whole(rule) and rule.matches_path(path) for rule in (*self.deny, *self.allow))


def _is_whole(rule: PathPattern) -> bool:
    return rule.tag is None or rule.tag == "*"
