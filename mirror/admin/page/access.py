"""Decides who may see the page, and which forms are its own."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from mirror.admin.page.attempts import FailedAttempts
from mirror.admin.page.session import SESSION_S, Session, Sessions
from mirror.admin.senders import is_bearer, is_own_origin
from mirror.core.networks import client_key
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

_COOKIE = "registry-mirror-session"
FORM_VALUE = "form"
"""The field of a form with the value of its session."""
_SESSION = web.RequestKey("session", Session)


class PageAccess:
    """Finds the session of a request, and signs in and out.

    Without an admin token every browser has a session; its forms need that all the same, so that no other page can send them.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._failed = FailedAttempts()
        self._log = ThrottledLog(log)

    @property
    def needs_token(self) -> bool:
        """Whether people have to sign in."""
        return self._sessions.token is not None

    def session(self, request: web.Request) -> Session | None:
        """Return the session of a request that may see pages; None if somebody has to sign in first."""
        if _SESSION in request:
            return request[_SESSION]
        found = self._sessions.find(request.cookies.get(_cookie(request)))
        if found is None and (not self.needs_token or self._has_token(request)):
            found = self._sessions.begin()
        if found is not None:
            request[_SESSION] = found
        return found

    def keep(self, request: web.Request, response: web.Response) -> None:
        """Send the cookie of a session that began without signing in."""
        session = request.get(_SESSION)
        if session is not None and not self.needs_token and request.cookies.get(_cookie(request)) != session.cookie:
            self.send(request, response, session)

    def admit_form(self, request: web.Request, form: dict[str, str]) -> Session:
        """Return the session that sent a form.

        Raises:
            web.HTTPForbidden: another page has sent it, or its session has ended.
        """
        self.admit_origin(request)
        session = self._sessions.find(request.cookies.get(_cookie(request)))
        given = form.get(FORM_VALUE, "").encode("utf-8", "replace")
        if session is None or not hmac.compare_digest(session.form_value.encode(), given):
            self._refuse(request, "no session, or another one's form")
            raise web.HTTPForbidden(text="this form is out of date: go back, reload the page and try again")
        request[_SESSION] = session
        return session

    def admit_origin(self, request: web.Request) -> None:
        """Raise web.HTTPForbidden for a request that a page of another origin has sent."""
        if not is_own_origin(request):
            self._refuse(request, "a web page's")
            raise web.HTTPForbidden(text="a web page of another origin may change nothing here")

    def sign_in(self, request: web.Request, token: str) -> Session | float | None:
        """Return a new session; None for a wrong token, or the seconds until the next attempt after too many of those."""
        client = client_key(request.remote or "")
        wait = self._failed.wait(client)
        if wait:
            self._refuse(request, "too many wrong tokens")
            return wait
        if not self._sessions.is_token(token.strip()):
            self._failed.note(client)
            self._refuse(request, "a wrong token")
            return None
        return self._sessions.begin()

    def send(self, request: web.Request, response: web.Response, session: Session) -> None:
        """Send the cookie of a session."""
        # A browser tells the scheme of its address, which a reverse proxy may have changed, when it sends a form.
        secure = request.secure or urlsplit(request.headers.get("Origin", "")).scheme == "https"
        response.set_cookie(
            _cookie(request), session.cookie, max_age=SESSION_S, path="/", secure=secure, httponly=True, samesite="Strict"
        )

    def forget(self, request: web.Request, response: web.Response) -> None:
        """Have the browser forget its session."""
        response.del_cookie(_cookie(request), path="/", httponly=True, samesite="Strict")

    def _has_token(self, request: web.Request) -> bool:
        token = self._sessions.token
        return token is not None and is_bearer(request.headers.get("Authorization", ""), token)

    def _refuse(self, request: web.Request, why: str) -> None:
        client = request.remote
        self._log.log("warning", "audit", why, action="refused", why=why, method=request.method, path=request.path, client=client)


def _cookie(request: web.Request) -> str:
    """Return the name of the cookie: browsers send those of one port to the others of a host, where another mirror may be."""
    port = request.host.rpartition(":")[2]
    return f"{_COOKIE}-{port}" if port.isascii() and port.isdigit() else _COOKIE
