"""Upstream's lists of tags and referrers: passed through, cached for `ttl`, and served stale in an outage."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from urllib.parse import urlencode

from mirror.cache.answers import ListAnswer
from mirror.cache.context import Context
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.upstream_tags import following_page, tag_names
from mirror.core import media
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.links import PAGE, SPECIFIED, format_link, next_page, page_params, parse_link_next, parse_page
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.core.paging import page
from mirror.core.staleness import may_serve
from mirror.errors import AccessDenied, NotFound, UpstreamError, UpstreamProtocolError, UpstreamRefusal
from mirror.storage.attachments import KeptList, joined
from mirror.upstream.flights import GuardedSingleFlight
from mirror.upstream.registry import Listing

_MAX_BYTES = 16 << 20
_MAX_ENTRIES = 1024


class Listings:
    """Answers for lists."""

    def __init__(self, context: Context, pull_policy: PullPolicy) -> None:
        self._context = context
        self._pull_policy = pull_policy
        self._requests: GuardedSingleFlight[Listing] = GuardedSingleFlight(context.in_use)
        self._cached: BoundedCache[Hashable, tuple[Listing, float]] = BoundedCache(_MAX_ENTRIES, _MAX_BYTES)

    async def tags(self, repository: Repository, path: str, query: dict[str, str]) -> ListAnswer:
        """A page of upstream's tags that may be pulled (OCI distribution-spec, Listing tags).

        A page without refused tags is shorter than requested; the link to the next page is upstream's. Offline it is a page of
        the tags that are held.

        Args:
            path: of the client's request; the link to the next page leads there.

        Raises:
            UpstreamRefusal, UpstreamError: see those.
        """
        if self._context.registry(repository).is_offline:
            return await self._held_tags(repository, path, query)
        listing, outcome, reason = await self._get("tags", repository, "tags/list", query)
        headers = {"Content-Type": "application/json", **_link(listing, path, query)}
        return ListAnswer(listing.body, headers, outcome, reason)

    async def referrers(self, repository: Repository, digest: Digest, path: str, query: dict[str, str]) -> ListAnswer:
        """The manifests that refer to a manifest (OCI distribution-spec, Listing Referrers). Raises like `tags`.

        Upstream's 404 means that it lacks this API; it is passed on, and clients then request a tag. The store keeps upstream's
        last answer for an outage; offline, what is held of that is the answer.
        """
        listing, outcome, reason = await self._referrers(repository, digest, query)
        headers = {"Content-Type": media.OCI_INDEX, **_link(listing, path, query)}
        if listing.filters is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        return ListAnswer(listing.body, headers, outcome, reason)

    async def _referrers(
        self, repository: Repository, digest: Digest, query: dict[str, str]
    ) -> tuple[Listing, Outcome, str | None]:
        if self._context.registry(repository).is_offline:
            return await self._context.in_thread(self._held_referrers, repository, digest, query), Outcome.HIT, None
        page, asked, attachments = _upstream_query(query), self._context.clock(), self._context.store.index.attachments
        try:
            found = await self._get("referrers", repository, f"referrers/{digest}", query)
        except NotFound:
            kept = KeptList(None, (), None, asked)
            await self._context.note(partial(attachments.put_list, repository, digest, page, kept), None)
            raise
        except AccessDenied:
            await self._context.note(partial(attachments.delete_list, repository, digest, page), None)
            raise
        except UpstreamError as error:
            return self._stored_list(repository, digest, page, error), Outcome.STALE, error.reason
        if found[1] is Outcome.MISS:
            kept = KeptList(found[0].body, found[0].links[:4], found[0].filters, asked)
            await self._context.note(partial(attachments.put_list, repository, digest, page, kept), None)
        return found

    def _stored_list(self, repository: Repository, digest: Digest, page: str, error: UpstreamError) -> Listing:
        """The list in the store; raises `error` if there is none, and NotFound if upstream last had none."""
        context, kept = self._context, self._recorded(repository, digest, page)
        max_age = context.policies.general.stale_if_error
        if kept is None or not may_serve(error.reason, context.clock() - kept.asked, max_age):
            raise error
        if kept.body is None:
            raise NotFound(f"upstream said last that it has no list of referrers of {repository} {digest}") from error
        context.metrics.stale_served.labels(repository.registry, error.reason).inc()
        return Listing(kept.body, kept.links, kept.filters)

    def _recorded(self, repository: Repository, digest: Digest, page: str) -> KeptList | None:
        """Upstream's last list and what was imported. A registry need not filter, so the whole list will do."""
        attachments = self._context.store.index.attachments
        kept = attachments.list(repository, digest, page)
        if page and page_params(page).keys() != {"artifactType"}:
            return kept
        return joined(kept or attachments.list(repository, digest, ""), attachments.imported(repository, digest))

    # ---- offline

    async def _held_tags(self, repository: Repository, path: str, query: dict[str, str]) -> ListAnswer:
        names = await self._context.in_thread(self._held_names, repository)
        if not names:
            self._context.registry(repository).refuse_offline()
        names, more = page(names, query.get("n"), query.get("last"))
        headers = {"Content-Type": "application/json"}
        if more:
            namespace = {"ns": query["ns"]} if "ns" in query else {}
            headers["Link"] = format_link(path, {"n": str(len(names)), "last": names[-1], **namespace})
        body = json.dumps({"name": repository.path, "tags": names}).encode()
        return ListAnswer(body, headers, Outcome.HIT, None)

    def _held_names(self, repository: Repository) -> list[str]:
        """The tags of a repository whose manifest is held and may be pulled, sorted."""
        tags, files = self._context.store.index.tags, self._context.store.files
        records = ((tag, tags.get(repository, tag)) for tag in tags.names(repository))
        held = [str(tag) for tag, record in records if record is not None and files.size(record.digest) is not None]
        return sorted(self._pull_policy.filter_tags(repository, held))

    def _held_referrers(self, repository: Repository, digest: Digest, query: dict[str, str]) -> Listing:
        """Upstream's last list without what is not held; raises Offline or NotFound if there is none."""
        kept = self._recorded(repository, digest, _upstream_query(query))
        if kept is None:
            self._context.registry(repository).refuse_offline()
        if kept is None or kept.body is None:
            raise NotFound(f"upstream said last that it has no list of referrers of {repository} {digest}")
        try:
            index = json.loads(kept.body)
            held = [entry for entry in index["manifests"] if self._is_held(entry["digest"])]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NotFound(f"upstream's last list of referrers of {repository} {digest} is malformed") from error
        return Listing(json.dumps({**index, "manifests": held}).encode(), kept.links, kept.filters)

    def _is_held(self, digest: str) -> bool:
        return self._context.store.files.size(Digest.parse(digest)) is not None

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._requests.close()

    async def _get(
        self, kind: str, repository: Repository, rest: str, query: dict[str, str]
    ) -> tuple[Listing, Outcome, str | None]:
        """The list, its outcome, and the reason of a STALE one."""
        page = _upstream_query(query)
        key = (repository, rest, page)
        now = self._context.clock()
        cached = self._cached.get(key)
        if cached is not None and 0 <= now - cached[1] < self._context.policies.general.ttl:
            return cached[0], Outcome.HIT, None
        try:
            listing, joined = await self._requests.run(key, lambda: self._fetch(kind, repository, rest, page))
        except UpstreamError as error:
            if cached is None or not may_serve(error.reason, now - cached[1], self._context.policies.general.stale_if_error):
                raise
            self._context.metrics.stale_served.labels(repository.registry, error.reason).inc()
            return cached[0], Outcome.STALE, error.reason
        except UpstreamRefusal:
            # A refusal is newer than the cached list.
            self._cached.pop(key)
            raise
        self._cached.put(key, (replace(listing, links=listing.links[:4]), now), size=len(listing.body))
        return listing, Outcome.JOINED if joined else Outcome.MISS, None

    async def _fetch(self, kind: str, repository: Repository, rest: str, page: str) -> Listing:
        """Fetch a list, check it, and remove refused tags."""
        listing = await self._context.registry(repository).listing(kind, repository.path, rest, page)
        following = following_page(repository, listing)
        if following is not None and page_params(following) == page_params(page):
            raise UpstreamProtocolError(f"{repository}: upstream's link to the next page of a list leads to the same page")
        if kind != "tags":
            return listing
        tags = self._pull_policy.filter_tags(repository, tag_names(repository, listing))
        return replace(listing, body=json.dumps({"name": repository.path, "tags": tags}).encode())


def _link(listing: Listing, path: str, query: dict[str, str]) -> dict[str, str]:
    """Rewrite upstream's link to the next page, so that it leads to this mirror."""
    target = parse_link_next(listing.links)
    if target is None:
        return {}
    namespace = {"ns": query["ns"]} if "ns" in query else {}
    return {"Link": format_link(path, {**page_params(next_page(target)), **namespace})}


def _upstream_query(query: dict[str, str]) -> str:
    """The query for upstream of a client's query; raises InvalidPage if its page is not from a link of this mirror."""
    if PAGE in query:
        return parse_page(query[PAGE])
    return urlencode(sorted((name, value) for name, value in query.items() if name in SPECIFIED), errors="replace")
