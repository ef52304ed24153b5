"""The status page of the admin address: the overview, signing in, and the files that pages load."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from mirror.admin.audit import log_sign_in
from mirror.admin.cluster_nodes import with_nodes
from mirror.admin.operations import AdminOperations
from mirror.admin.page import overview
from mirror.admin.page.access import PageAccess
from mirror.admin.page.charts import DEFAULT_WINDOW, WINDOWS, charts
from mirror.admin.page.forms import read_form
from mirror.admin.page.frame import Frame, is_page, redirect
from mirror.admin.page.image_pages import ImagePages
from mirror.admin.page.release_pages import ReleasePages
from mirror.admin.page.render import STATIC, static
from mirror.admin.page.session import Session, Sessions
from mirror.admin.page.shared_value import SharedValue
from mirror.admin.page.sync_pages import SyncPages
from mirror.admin.sync_operations import SyncOperations
from mirror.admin.traffic import TrafficHistory
from mirror.core.traffic import Traffic

# However many people look, the figures are collected at most this often.
_MAX_AGE_S: Final = 1.0
_MAX_NEXT: Final = 2000


@dataclass(frozen=True, slots=True)
class _Figures:
    """What the overview shows, as of a time in seconds since the epoch."""

    when: float
    status: dict[str, Any]
    jobs: dict[str, Any]
    grown: list[tuple[int, Traffic]]


class StatusPage:
    """The handlers of the pages.

    Args:
        sessions: knows the admin token.
    """

    def __init__(self, operations: AdminOperations, sync: SyncOperations, history: TrafficHistory, sessions: Sessions) -> None:
        self._operations = operations
        self._sync = sync
        self._history = history
        self._access = PageAccess(sessions)
        self._frame = Frame(self._access)
        self._figures = SharedValue(self._frame.executor, self._collect, _MAX_AGE_S)
        self._images = ImagePages(self._frame, operations)
        self._jobs = SyncPages(self._frame, sync)
        self._releases = ReleasePages(self._frame, operations.held_back, sync)

    def add_to(self, application: web.Application) -> None:
        """Add the routes."""
        router, frame = application.router, self._frame
        router.add_get("/", frame.handler(self._overview))
        for pages in (self._images, self._jobs, self._releases):
            for path, handle in pages.views().items():
                router.add_get(path, frame.handler(handle))
            for path, handle in pages.forms().items():
                router.add_post(path, frame.handler(handle))
        router.add_get("/sign-in", frame.handler(self._sign_in_form, is_open=True))
        router.add_post("/sign-in", frame.handler(self._sign_in, is_open=True))
        router.add_post("/sign-out", frame.handler(self._sign_out))
        router.add_get("/static/{name}", frame.handler(self._file, is_open=True))

    def close(self) -> None:
        """Make no further page."""
        self._frame.close()

    def _collect(self) -> _Figures:
        status = self._operations.status()
        return _Figures(time.time(), status, self._sync.state(), self._history.growth(status["requests"]))

    async def _overview(self, request: web.Request) -> web.Response:
        window = WINDOWS.get(request.query.get("window", ""), WINDOWS[DEFAULT_WINDOW])
        figures = await self._frame.bounded(self._figures.get())
        status = await with_nodes(figures.status, self._operations.node)
        downloads = overview.downloads(status["downloads"])
        return await self._frame.page(
            request,
            "overview.html",
            when=figures.when,
            status=status,
            jobs=figures.jobs,
            problems=overview.problems(status),
            downloads=downloads[: overview.MAX_DOWNLOADS],
            more_downloads=len(downloads[overview.MAX_DOWNLOADS :]),
            max_clients=overview.MAX_CLIENTS,
            max_nodes=overview.MAX_NODES,
            max_held_back=overview.MAX_HELD_BACK,
            troubles=status["troubles"][: overview.MAX_TROUBLES],
            limits=overview.pulls_left(status["upstreams"]),
            charts=await self._frame.work(charts, window, figures.grown, int(figures.when) // 60),
            windows=WINDOWS.values(),
        )

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in STATIC:
            raise web.HTTPNotFound(text="there is no such file")
        body = await self._frame.work(static, name)
        # The address of a file changes with its content.
        return web.Response(body=body, content_type=STATIC[name], charset="utf-8", headers={"Cache-Control": "max-age=86400"})

    # ---- signing in

    async def _sign_in_form(self, request: web.Request) -> web.Response:
        following = _local(request.query.get("next", ""))
        if self._access.session(request) is not None:
            return redirect(following)
        return await self._frame.page(request, "sign_in.html", following=following, problem="")

    async def _sign_in(self, request: web.Request) -> web.Response:
        self._access.admit_origin(request)
        form = await read_form(request)
        following = _local(form.get("next", ""))
        if not self._access.needs_token:
            return redirect(following)
        outcome = self._access.sign_in(request, form.get("token", ""))
        if isinstance(outcome, Session):
            log_sign_in(request.remote)
            response = redirect(following)
            self._access.send(request, response, outcome)
            return response
        if outcome is None:
            return await self._frame.page(
                request, "sign_in.html", code=403, following=following, problem="This is not the admin token."
            )
        seconds = int(outcome) + 1
        problem = f"Too many wrong tokens came from your address. Try again in {seconds} s."
        response = await self._frame.page(request, "sign_in.html", code=429, following=following, problem=problem)
        response.headers["Retry-After"] = str(seconds)
        return response

    async def _sign_out(self, request: web.Request) -> web.Response:
        self._access.admit_form(request, await read_form(request))
        response = redirect("/sign-in")
        self._access.forget(request, response)
        return response


def _local(location: str) -> str:
    """Return a page of this address, which a link to the sign-in form may have named; else the overview."""
    try:
        parts = urlsplit(location[:_MAX_NEXT])
    except ValueError:
        return "/"
    if parts.scheme or parts.netloc or not is_page(parts.path) or not location.isprintable() or "\\" in location:
        return "/"
    return parts.path + (f"?{parts.query}" if parts.query else "")
