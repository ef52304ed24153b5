"""The pages about sync jobs: the order of one, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from mirror.admin.audit import log_job
from mirror.admin.page.forms import read_form
from mirror.admin.page.frame import Frame, Handler, redirect
from mirror.admin.page.render import url
from mirror.admin.sync_operations import UNFINISHED, SyncOperations


class SyncPages:
    """The handlers."""

    def __init__(self, frame: Frame, operations: SyncOperations) -> None:
        self._frame = frame
        self._operations = operations

    def views(self) -> Mapping[str, Handler]:
        """Return the handlers of pages, by path."""
        return {"/sync": self._confirm, "/job": self._job}

    def forms(self) -> Mapping[str, Handler]:
        """Return the handlers of forms, by path."""
        return {"/sync": self._sync}

    async def _confirm(self, request: web.Request) -> web.Response:
        return await self._frame.page(request, "sync.html", image=request.query.get("image", "").strip())

    async def _sync(self, request: web.Request) -> web.Response:
        form = await read_form(request)
        self._frame.access.admit_form(request, form)
        image = form.get("image", "").strip()
        name = await self._frame.work(self._order, [image] if image else [], request.remote)
        if name is None:
            raise web.HTTPServiceUnavailable(text="too many orders wait, or the index cannot be written; the log says which")
        return redirect(url("/job", name=name))

    def _order(self, images: list[str], client: str | None) -> str | None:
        name = self._operations.sync(images)
        if name is not None:
            log_job("sync", name, images, client)
        return name

    async def _job(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        job = await self._frame.work(self._operations.job, name)
        if job is None:
            raise web.HTTPNotFound(text="there is no such order, or it ended more than a day ago")
        return await self._frame.page(request, "job.html", name=name, job=job, is_running=job["result"] in UNFINISHED)
