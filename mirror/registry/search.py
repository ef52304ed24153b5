"""`docker search HOST:PORT/TERM` and podman's: the first version of Docker's registry API, over what is held here.

Docker sends GET `/v1/_ping`, then GET `/v1/search?q=TERM&n=25` (docs.docker.com, the API of the Docker index, deprecated; its
clients still use it).
"""

from __future__ import annotations

import json
from typing import Final

from mirror.cache.catalog import Catalog
from mirror.core.paging import SearchPage
from mirror.listener.responses import Rendered, head
from mirror.registry.routing import Route

_JSON: Final = {"Content-Type": "application/json"}


def _ping() -> Rendered:
    body = b'{"standalone": true}'
    # Docker asks nobody else for a token then.
    headers = {**_JSON, "Content-Length": str(len(body)), "X-Docker-Registry-Standalone": "true"}
    return Rendered(200, head(200, headers), body)


SEARCH_PING: Final = _ping()


async def search(catalog: Catalog, route: Route) -> Rendered:
    """The response to a search. Raises InvalidPage."""
    term = route.parameter("q") or ""
    asked = SearchPage.parse(route.parameter("n"), route.parameter("page"))
    found, count = await catalog.search(term, asked.number, asked.size)
    results = [
        {
            "name": one.name,
            "description": f"{one.tags} {'tag' if one.tags == 1 else 'tags'} held here",
            "star_count": 0,
            "is_official": False,
            "is_automated": False,
            "is_trusted": False,
        }
        for one in found
    ]
    answer = {
        "query": term,
        "num_results": count,
        "num_pages": -(-count // asked.size),
        "page": asked.number,
        "page_size": asked.size,
        "results": results,
    }
    body = json.dumps(answer).encode()
    return Rendered(200, head(200, {**_JSON, "Content-Length": str(len(body))}), body)
