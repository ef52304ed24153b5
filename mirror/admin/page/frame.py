"""The frame of all pages: their addresses, who may see them, their headers, and their errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from aiohttp import web

from mirror import __version__
from mirror.admin.page.access import PageAccess
from mirror.admin.page.render import STATIC, render, url
from mirror.aio import in_thread
from mirror.core.errors import InvalidInput
from mirror.errors import NotFound, Offline, StorageError

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PAGES: Final = frozenset({"/", "/images", "/image", "/purge", "/release", "/sync", "/job", "/sign-in", "/sign-out"})
_STATIC_PREFIX: Final = "/static/"
# A page is work for some milliseconds. With threads of its own it delays nothing else, also when the disk hangs.
_THREADS: Final = 2
_MAX_WAITING: Final = 100
_TIMEOUT_S: Final = 30.0
PURGE_TIMEOUT_S: Final = 120.0
"""A purge of very many images takes longer than a page; browsers wait for some minutes."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
# Nothing is loaded from elsewhere, nothing runs that is not a file of this address, and no other page shows this one in a frame.
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: a form would then be sent with the origin `null` (Fetch, section 3.2).
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_page(path: str) -> bool:
    """Whether a path is one of the page's; these admit requests themselves."""
    return path in _PAGES or (path.startswith(_STATIC_PREFIX) and path.removeprefix(_STATIC_PREFIX) in STATIC)


class Frame:
    """Answers requests with pages. Use it from the event loop's thread only.

    Attributes:
        executor: the threads in which pages are made.
    """

    def __init__(self, access: PageAccess) -> None:
        self.access = access
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="page")
        self._waiting = 0

    def close(self) -> None:
        """Begin no further work."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work for a page; see `bounded` for what is raised."""
        return await self.bounded(in_thread(self.executor, work, *args, **kwargs))

    async def bounded(self, work: Awaitable[T], timeout_s: float = _TIMEOUT_S) -> T:
        """Wait for work on a page.

        Raises:
            web.HTTPServiceUnavailable: it is not done in time, or too much other work waits.
        """
        if self._waiting >= _MAX_WAITING:
            asyncio.ensure_future(work).cancel()
            raise web.HTTPServiceUnavailable(text="too many pages are being made; try again in a moment")
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError as error:
            why = f"not done within {timeout_s:g} seconds: the disk may be slow, or much may be held; work that has begun goes on"
            raise web.HTTPServiceUnavailable(text=why) from error
        finally:
            self._waiting -= 1

    async def page(self, request: web.Request, template: str, *, code: int = 200, **values: Any) -> web.Response:
        """Return a page."""
        session = self.access.session(request)
        frame = {
            "version": __version__,
            "form_value": session.form_value if session else "",
            "is_signed_in": session is not None,
            "needs_token": self.access.needs_token,
            "path": request.path,
        }
        body = await self.work(render, template, {**frame, **values})
        response = web.Response(body=body, status=code, content_type="text/html", charset="utf-8")
        self.access.keep(request, response)
        return response

    def handler(self, handle: Handler, *, is_open: bool = False) -> Handler:
        """Return a handler with the headers and the errors of pages.

        Args:
            is_open: nobody has to be signed in.
        """

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                if not is_open and self.access.session(request) is None:
                    response: web.StreamResponse = self._to_sign_in(request)
                else:
                    response = await handle(request)
            except web.HTTPException as error:
                response = await self._error(request, error.status, error.text or error.reason)
            except InvalidInput as error:
                response = await self._error(request, 400, str(error))
            except NotFound as error:
                response = await self._error(request, 404, str(error))
            except Offline as error:
                response = await self._error(request, 409, str(error))
            except StorageError as error:
                response = await self._error(request, 503, str(error))
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return answer

    async def _error(self, request: web.Request, code: int, text: str) -> web.Response:
        return await self.page(request, "error.html", code=code, error_code=code, text=text)

    def _to_sign_in(self, request: web.Request) -> web.Response:
        following = request.raw_path if request.method in _SAFE_METHODS and request.raw_path != "/" else None
        return redirect(url("/sign-in", next=following))


def redirect(location: str) -> web.Response:
    """Return an answer that leads to another page, which is then fetched by GET."""
    return web.Response(status=303, headers={"Location": location})
