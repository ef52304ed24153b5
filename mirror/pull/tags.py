"""All tags of a repository, however many pages upstream gives them in."""

from __future__ import annotations

import json

from mirror.core.links import next_query, parse_link_next
from mirror.core.names import Repository
from mirror.errors import UpstreamNonsense
from mirror.upstream.registry import Listing, Registry

# More tags than any repository of use has; an upstream whose pages never end stops here.
_MOST_PAGES = 200
_MOST_TAGS = 200_000
_PAGE = "1000"


def tag_names(repository: Repository, listing: Listing) -> list[str]:
    """The tags of one page (OCI distribution-spec, Listing tags); raises UpstreamNonsense if it is none."""
    try:
        return [str(tag) for tag in json.loads(listing.body).get("tags") or []]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UpstreamNonsense(f"{repository}: upstream's list of tags is none") from error


async def every_tag(registry: Registry, repository: Repository) -> list[str]:
    """Every tag that upstream lists.

    Raises:
        UpstreamAnswer, UpstreamError: see those; the latter also for a list that does not end.
    """
    names: list[str] = []
    query = {"n": _PAGE}
    for _ in range(_MOST_PAGES):
        listing = await registry.listing("tags", repository.path, "tags/list", query)
        names += tag_names(repository, listing)
        if len(names) > _MOST_TAGS:
            raise UpstreamNonsense(f"{repository}: upstream lists more than {_MOST_TAGS} tags")
        target = parse_link_next(listing.links)
        if target is None:
            return names
        following = next_query(target)
        if following == query:
            break
        query = following
    raise UpstreamNonsense(f"{repository}: upstream's list of tags does not end")
