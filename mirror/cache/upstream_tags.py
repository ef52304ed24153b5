"""Reads upstream's paginated tag lists."""

from __future__ import annotations

import json

from mirror.core.errors import InvalidPage
from mirror.core.links import next_page, parse_link_next
from mirror.core.names import Repository
from mirror.errors import UpstreamProtocolError
from mirror.upstream.registry import Listing, Registry

# More than any real repository has; ends the walk through an upstream's endless pages.
_MAX_PAGES = 200
_MAX_TAGS = 200_000
_FIRST_PAGE = "n=1000"


def tag_names(repository: Repository, listing: Listing) -> list[str]:
    """The tags of one page (OCI distribution-spec, Listing tags); raises UpstreamProtocolError if the body is no tag list."""
    try:
        return [str(tag) for tag in json.loads(listing.body).get("tags") or []]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UpstreamProtocolError(f"{repository}: upstream's list of tags is malformed") from error


def following_page(repository: Repository, listing: Listing) -> str | None:
    """The query of the next page, None after the last; raises UpstreamProtocolError if upstream's link is malformed."""
    target = parse_link_next(listing.links)
    try:
        return None if target is None else next_page(target)
    except InvalidPage as error:
        raise UpstreamProtocolError(f"{repository}: upstream's link to the next page of a list: {error}") from error


async def every_tag(registry: Registry, repository: Repository) -> list[str]:
    """Every tag that upstream lists.

    Raises:
        UpstreamRefusal, UpstreamError: see those; the latter also for a list without an end.
    """
    names: list[str] = []
    query, seen = _FIRST_PAGE, {_FIRST_PAGE}
    for _ in range(_MAX_PAGES):
        listing = await registry.listing("tags", repository.path, "tags/list", query)
        names += tag_names(repository, listing)
        if len(names) > _MAX_TAGS:
            raise UpstreamProtocolError(f"{repository}: upstream lists more than {_MAX_TAGS} tags")
        following = following_page(repository, listing)
        if following is None:
            return names
        if following in seen:
            break
        seen.add(following)
        query = following
    raise UpstreamProtocolError(f"{repository}: upstream's list of tags does not end")
