"""A client of the admin address of a running mirror."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urlsplit

from mirror.cli.problems import refuse
from mirror.config.model import Config, find, load
from mirror.config.sections import Admin
from mirror.errors import ConfigurationError

# Long enough to list all images of a large store, and for the first purge of a store of an earlier version.
_TIMEOUT_S = 600.0
# The kernel probes nine times.
_KEEPALIVE_S = 60


def configuration(named: Path | None) -> Config:
    """Load the configuration; exit with its problems if it is invalid."""
    try:
        return load(find(named))
    except ConfigurationError as error:
        refuse(error.problems)


def _cause(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "there is no TLS at this port; the admin address is plain HTTP, 127.0.0.1:5001 by default (admin.listen)"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it has closed the connection, as a port with TLS does; the admin address has another one, 5001 by default"
    return str(error)


def _admin_section(named: Path | None, *, is_required: bool) -> Admin | None:
    """Return the section of the admin address; None if it is not required, and the configuration is invalid."""
    try:
        return load(find(named)).admin
    except ConfigurationError as error:
        if is_required or named is not None:
            refuse(error.problems)
        return None


_Send: TypeAlias = Callable[[http.client.HTTPConnection, str], None]
"""Sends a request for a target."""


class Refused(Exception):
    """The mirror refuses a request, or does not answer; the message says why.

    Attributes:
        status: of the answer; None if there is none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed soon: the mirror, or one behind a load balancer, is out of order."""
        return (
            self.status is None or self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or self.status >= 500
        )


class InterruptedAfterUpload(KeyboardInterrupt):
    """Ctrl-C while the mirror works on a body that it has whole."""


class AdminClient:
    """Sends requests to the admin address."""

    def __init__(self, config: Path | None, url: str | None, token_file: Path | None) -> None:
        admin = _admin_section(config, is_required=url is None) if token_file is None or url is None else None
        self._url = url or f"http://{admin.listen if admin else ''}"
        path = token_file or (admin.token_file if admin else None)
        try:
            self._token = path.read_text().strip() if path is not None else None
        except (OSError, UnicodeDecodeError) as error:
            refuse([f"the token file {path} cannot be read: {error}"])

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON of the answer; exit with the problem if there is none."""
        try:
            return self._answer(self._open(path, self._json_sender(method, body)))
        except Refused as error:
            refuse(str(error).splitlines(), 1)

    def find(self, path: str) -> Any:
        """Return the JSON of the answer to GET; None if there is nothing of that name.

        Raises:
            Refused: there is another problem.
        """
        response = self._open(path, self._json_sender("GET", None))
        if response.status == HTTPStatus.NOT_FOUND:
            response.close()
            return None
        return self._answer(response)

    def stream(self, path: str, body: dict[str, Any], request_id: str) -> http.client.HTTPResponse:
        """Return the response to a POST when its head has come, however long that takes.

        The caller reads its body, each step of which has to come in time.

        Raises:
            Refused: the mirror refuses the request, or does not answer.
        """
        send = self._json_sender("POST", body, {"X-Request-Id": request_id})
        response = self._open(path, send, head_timeout=None)
        if response.status != HTTPStatus.OK:
            self._answer(response)
        return response

    def upload(self, path: str, media_type: str, pieces: Iterable[bytes], size: int | None) -> Any:
        """Send a body of any length by POST, and return the JSON of the answer.

        Args:
            size: bytes of the body; None if that is not known.

        The answer may take as long as the mirror needs.

        Raises:
            Refused: the mirror refuses it, perhaps before it has all of it.
            InterruptedAfterUpload: Ctrl-C, when the mirror had all of it.
        """
        is_sent = False
        headers = self._headers(media_type)
        headers |= {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}

        def send(connection: http.client.HTTPConnection, target: str) -> None:
            nonlocal is_sent
            connection.putrequest("POST", target)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                is_sent = _send_pieces(connection, pieces, chunked=size is None)

        try:
            return self._answer(self._open(path, send, head_timeout=None))
        except KeyboardInterrupt as error:
            if is_sent:
                raise InterruptedAfterUpload from error
            raise

    def _json_sender(self, method: str, body: dict[str, Any] | None, more: dict[str, str] | None = None) -> _Send:
        data, headers = json.dumps(body) if body is not None else None, self._headers("application/json") | (more or {})
        return lambda connection, target: connection.request(method, target, data, headers)

    def _headers(self, media_type: str) -> dict[str, str]:
        authorization = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        # The socket then belongs to the response alone.
        return {"Content-Type": media_type, "Connection": "close", **authorization}

    def _open(self, path: str, send: _Send, head_timeout: float | None = _TIMEOUT_S) -> http.client.HTTPResponse:
        """Send a request, and return the response when its head has come."""
        parts, port = self._address()
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", port, timeout=_TIMEOUT_S)
        try:
            send(connection, parts.path.rstrip("/") + path)
            sock = connection.sock
            if head_timeout is None:
                _watch(sock)
            sock.settimeout(head_timeout)
            response = connection.getresponse()
            sock.settimeout(_TIMEOUT_S)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError | http.client.HTTPException):
                raise Refused(f"the mirror at {self._url} does not answer: {_cause(error)}") from error
            raise
        return response

    def _answer(self, response: http.client.HTTPResponse) -> Any:
        """Return the JSON of a response."""
        try:
            with contextlib.closing(response):
                text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Refused(f"the mirror at {self._url} does not answer: {_cause(error)}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.status not in (200, 202) or not isinstance(answer, dict):
            is_registry = response.getheader("Docker-Distribution-Api-Version") is not None
            raise Refused(self._refusal(response.status, answer, is_registry=is_registry), response.status)
        return answer

    def _refusal(self, status: int, answer: Any, *, is_registry: bool) -> str:
        """Return the problem with an answer."""
        if is_registry or (isinstance(answer, dict) and "errors" in answer):
            return f"{self._url} is the address of a registry; the admin address has another port, 5001 by default (admin.listen)"
        if not isinstance(answer, dict) or "error" not in answer:
            return f"{self._url} answers {status}, but not as a mirror's admin address does"
        if status == HTTPStatus.UNAUTHORIZED:
            if self._token is None:
                return f"{self._url} requires a token (401): name its file with --token-file"
            return (
                f"{self._url} refuses the token (401): it is not the one of admin.token_file there (--token-file names another)"
            )
        return f"{self._url} refuses ({status}): {answer['error']}"

    def _address(self) -> tuple[SplitResult, int | None]:
        try:
            parts = urlsplit(self._url)
            port = parts.port
        except ValueError:
            parts, port = SplitResult("", "", "", "", ""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            refuse([f"--url: must be like http://127.0.0.1:5001, not {self._url!r}"])
        return parts, port


def _watch(sock: socket.socket) -> None:
    """Have the kernel end a connection whose other host is gone (tcp(7)); a mirror that only takes long stays."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)


def _send_pieces(connection: http.client.HTTPConnection, pieces: Iterable[bytes], *, chunked: bool) -> bool:
    """Send a body until its end, or until an answer comes, which then is a refusal; returns whether all of it is sent."""
    for piece in pieces:
        if select.select([connection.sock], [], [], 0)[0]:
            return False
        if piece:
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        connection.send(b"0\r\n\r\n")
    return True
