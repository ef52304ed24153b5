"""What a browser without scripts does at the admin address: keeps its cookie, and sends the forms that it was shown."""

from __future__ import annotations

import re
from html import unescape
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

from tests.support.mirrors import Answer

_FIELD = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">')
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Browser:
    """A browser with one cookie jar.

    Attributes:
        cookie: the header with what it has been given.
        set_cookie: the last Set-Cookie that it got.
    """

    def __init__(self, mirror: Any) -> None:
        self._mirror = mirror
        self.cookie = ""
        self.set_cookie = ""

    async def get(self, path: str, **headers: str) -> Answer:
        """A page; redirects are not followed."""
        return await self.request("GET", path, headers)

    async def send(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        """Send a form."""
        return await self.request("POST", path, {**FORM, **headers}, urlencode(fields).encode())

    async def fill(self, page: Answer, path: str, **fields: str) -> Answer:
        """Send the last form that a page shows, with these fields."""
        return await self.send(path, {**hidden_fields(page), **fields})

    async def request(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
        """Send any request with the cookie."""
        url = f"http://127.0.0.1:{self._mirror.admin_port}{path}"
        headers = {"Accept-Encoding": "identity", **({"Cookie": self.cookie} if self.cookie else {}), **headers}
        async with self._mirror.session.request(method, url, headers=headers, data=body, allow_redirects=False) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self.set_cookie = response.headers.get("Set-Cookie", "")
        for name, morsel in SimpleCookie(self.set_cookie).items():
            self.cookie = f"{name}={morsel.value}" if morsel.value else ""
        return answer


def hidden_fields(page: Answer) -> dict[str, str]:
    """The hidden fields of a page; those of a later form win."""
    return {name: unescape(value) for name, value in _FIELD.findall(page.body.decode())}
