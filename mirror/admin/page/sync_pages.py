"""The pages about sync jobs: the order of one, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from mirror.admin.audit import log_job
from mirror.admin.page.forms import read_form
from mirror.admin.page.frame import Frame, Handler, redirect
from mirror.admin.page.render import url
from mirror.admin.sync_operations import NotAdded, OrdersUnknown, SyncOperations
from mirror.sync.job_states import UNFINISHED


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
        images = [image] if image else []
        try:
            given = await self._frame.bounded(self._operations.sync(images))
        except NotAdded as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        log_job("sync", given.name, images, request.remote)
        return redirect(url("/job", name=given.name))

    async def _job(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        try:
            job = await self._frame.bounded(self._operations.job(name))
        except OrdersUnknown as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        if job is None:
            raise web.HTTPNotFound(text="there is no such order, or it ended more than a day ago")
        return await self._frame.page(request, "job.html", name=name, job=job, is_running=job["result"] in UNFINISHED)
