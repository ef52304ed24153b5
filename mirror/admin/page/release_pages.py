"""The pages that let tags through which are held back: what would be released, and the release."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from mirror.admin.held_back import HeldBack, NothingHeldBack
from mirror.admin.page.forms import read_form
from mirror.admin.page.frame import Frame, Handler
from mirror.admin.release_api import release
from mirror.admin.sync_operations import SyncOperations
from mirror.cache.held_tags import HeldImage


class ReleasePages:
    """The handlers."""

    def __init__(self, frame: Frame, held_back: HeldBack, sync: SyncOperations) -> None:
        self._frame = frame
        self._held_back = held_back
        self._sync = sync

    def views(self) -> Mapping[str, Handler]:
        """Return the handlers of pages, by path."""
        return {"/release": self._confirm}

    def forms(self) -> Mapping[str, Handler]:
        """Return the handlers of forms, by path."""
        return {"/release": self._release}

    async def _confirm(self, request: web.Request) -> web.Response:
        name = request.query.get("image", "").strip()
        if not name:
            raise web.HTTPBadRequest(text="image: is required, for example /release?image=nginx:1.27")
        return await self._confirmation(request, name, has_changed=False)

    async def _confirmation(self, request: web.Request, name: str, *, has_changed: bool) -> web.Response:
        found = await self._frame.work(self._matching, name)
        shown = _fingerprint(found)
        return await self._frame.page(request, "release.html", match=name, found=found, shown=shown, has_changed=has_changed)

    async def _release(self, request: web.Request) -> web.Response:
        form = await read_form(request)
        self._frame.access.admit_form(request, form)
        name = form.get("image", "").strip()
        found = await self._frame.work(self._matching, name)
        if form.get("shown") != _fingerprint(found):
            return await self._confirmation(request, name, has_changed=True)
        released, order = await self._frame.bounded(release(self._held_back, self._sync, found, request.remote))
        return await self._frame.page(request, "released.html", released=released, order=order)

    def _matching(self, name: str) -> list[HeldImage]:
        try:
            return self._held_back.matching([name])
        except NothingHeldBack:
            return []


def _fingerprint(found: list[HeldImage]) -> str:
    """Return what changes with what would be released."""
    return " ".join(f"{image}={image.digest}" for image in found)
