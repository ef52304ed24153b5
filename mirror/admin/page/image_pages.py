"""The pages about images: the list, one image, and a purge with what it removes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final, ParamSpec

from aiohttp import web

from mirror.admin.audit import log_purge, purge_counts
from mirror.admin.operations import AdminOperations
from mirror.admin.page.catalog import ORDERS, Catalog
from mirror.admin.page.forms import read_form
from mirror.admin.page.frame import PURGE_TIMEOUT_S, Frame, Handler
from mirror.admin.page.shared_value import SharedValue
from mirror.aio import in_thread
from mirror.maintenance.purge import PurgeRequest, PurgeResult

P = ParamSpec("P")

# Counting what is held of ten thousand images takes some seconds.
_MAX_AGE_S: Final = 5.0
_MAX_NAMED: Final = 200
_MAX_LAYERS: Final = 200


class ImagePages:
    """The handlers."""

    def __init__(self, frame: Frame, operations: AdminOperations) -> None:
        self._frame = frame
        self._operations = operations
        self._catalog = SharedValue(frame.executor, self._list, _MAX_AGE_S)

    def views(self) -> Mapping[str, Handler]:
        """Return the handlers of pages, by path."""
        return {"/images": self._images, "/image": self._image, "/purge": self._confirm_purge}

    def forms(self) -> Mapping[str, Handler]:
        """Return the handlers of forms, by path."""
        return {"/purge": self._purge}

    def _list(self) -> Catalog:
        return Catalog(self._operations.images(None), self._operations.registry_storage.figures())

    async def _images(self, request: web.Request) -> web.Response:
        query, order = request.query.get("q", ""), request.query.get("sort", "")
        order = order if order in ORDERS else "name"
        catalog = await self._frame.bounded(self._catalog.get())
        page = await self._frame.work(catalog.page, query, order, _number(request.query.get("page", "1")))
        return await self._frame.page(
            request,
            "images.html",
            query=query,
            order=order,
            orders=ORDERS,
            page=page,
            held=len(catalog.rows),
            totals=catalog.totals,
            age=self._catalog.age_s,
        )

    async def _image(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if not name.strip():
            raise web.HTTPBadRequest(text="name: is required, for example /image?name=nginx:1.27")
        found = await self._frame.bounded(self._operations.explain(name))
        return await self._frame.page(request, "image.html", image=found, max_layers=_MAX_LAYERS)

    async def _confirm_purge(self, request: web.Request) -> web.Response:
        match = request.query.get("match", "")
        if not match.strip():
            raise web.HTTPBadRequest(text="match: is required, for example /purge?match=nginx:1.27")
        return await self._confirmation(request, match, is_soft=False, has_changed=False)

    async def _confirmation(self, request: web.Request, match: str, *, is_soft: bool, has_changed: bool) -> web.Response:
        found = await self._in_time(self._operations.purge, PurgeRequest(self._operations.pattern(match), dry_run=True))
        return await self._frame.page(
            request,
            "purge.html",
            match=match,
            is_soft=is_soft,
            has_changed=has_changed,
            named=found.images[:_MAX_NAMED],
            more=len(found.images[_MAX_NAMED:]),
            counts=purge_counts(found),
            shown=_fingerprint(found),
        )

    async def _purge(self, request: web.Request) -> web.Response:
        form = await read_form(request)
        self._frame.access.admit_form(request, form)
        match, is_soft = form.get("match", ""), form.get("how") == "soft"
        ordered = PurgeRequest(self._operations.pattern(match), soft=is_soft)
        now = await self._in_time(self._operations.purge, PurgeRequest(ordered.pattern, dry_run=True))
        if form.get("shown") != _fingerprint(now):
            return await self._confirmation(request, match, is_soft=is_soft, has_changed=True)
        cluster = self._operations.cluster_purge
        order = None if cluster is None else await cluster.tell(ordered)
        purged = await self._in_time(self._carry_out, ordered, request.remote)
        self._catalog.drop()
        return await self._frame.page(
            request,
            "purged.html",
            match=match,
            is_soft=is_soft,
            named=purged.images[:_MAX_NAMED],
            more=len(purged.images[_MAX_NAMED:]),
            counts=purge_counts(purged),
            nodes=None if cluster is None else await cluster.results(order, purged, wait=False),
        )

    async def _in_time(self, work: Callable[P, PurgeResult], *args: P.args, **kwargs: P.kwargs) -> PurgeResult:
        return await self._frame.bounded(in_thread(self._frame.executor, work, *args, **kwargs), PURGE_TIMEOUT_S)

    def _carry_out(self, ordered: PurgeRequest, client: str | None) -> PurgeResult:
        purged = self._operations.purge(ordered)
        # Here, because the purge goes on when nobody waits for it any more.
        log_purge(ordered, purged, client)
        return purged


def _fingerprint(found: PurgeResult) -> str:
    """Return what changes with the images that a purge names."""
    return hashlib.sha256("\n".join(found.images).encode()).hexdigest()


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 1
