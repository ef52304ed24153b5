"""What may be pulled, by the policies of the registries and what the index knows."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.core.digest import Digest
from mirror.core.errors import InvalidTag
from mirror.core.names import Reference, Repository, Tag
from mirror.core.policy import Policy
from mirror.errors import PolicyDenied
from mirror.pull.context import Context


class Permission:
    """Holds what clients ask for against the policies, before anything else is done about it.

    Args:
        policies: by registry.
    """

    def __init__(self, context: Context, policies: Mapping[str, Policy]) -> None:
        self._context = context
        self._policies = policies

    async def check(self, repository: Repository, reference: Reference | None) -> None:
        """Return if it may be pulled; without a reference, if anything of the repository may.

        What may be pulled once stays so while nothing is configured anew; a digest that may not can come to be named by a tag
        that may.

        Raises:
            PolicyDenied: it may not.
        """
        policy = self._policies.get(repository.registry)
        if policy is None:
            return
        rule = await self._refuses(policy, repository, reference)
        if rule is not None:
            what = repository if reference is None else f"{repository} {reference}"
            raise PolicyDenied(f"{what} may not be pulled through this mirror", rule)

    def lists(self, repository: Repository, tag: Tag) -> bool:
        """Whether a tag may be named in a list: whether it may be pulled."""
        policy = self._policies.get(repository.registry)
        return policy is not None and policy.refuses_tag(repository.path, tag) is None

    def listed(self, repository: Repository, tags: list[str]) -> list[str]:
        """Those of upstream's tags that may be named; what is no tag cannot be pulled, either."""
        policy = self._policies.get(repository.registry)
        if policy is None or not policy.looks_at_tags(repository.path):
            return tags
        return [text for text in tags if (tag := _tag(text)) is not None and self.lists(repository, tag)]

    async def _refuses(self, policy: Policy, repository: Repository, reference: Reference | None) -> str | None:
        path = repository.path
        if isinstance(reference, Tag):
            return policy.refuses_tag(path, reference)
        if isinstance(reference, Digest) and policy.looks_at_tags(path):
            context = self._context
            return policy.refuses_digest(path, await context.in_thread(context.index.tags_naming, repository, reference))
        return policy.refuses_repository(path)


def _tag(text: str) -> Tag | None:
    try:
        return Tag.parse(text)
    except InvalidTag:
        return None
