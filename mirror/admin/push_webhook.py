"""What Docker Hub sends when somebody has pushed: taken from whoever knows the secret in its path, and believed in nothing more.

It only ever makes the mirror look at an image sooner: nothing in it is fetched, followed or stored.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import structlog
from aiohttp import web

from mirror.admin.json_body import read_body
from mirror.config.sections import MIN_WEBHOOK_SECRET
from mirror.core.errors import InvalidInput
from mirror.core.names import DOCKER_HUB, Repository, Tag
from mirror.listener.admission import WEBHOOK_PREFIX
from mirror.listener.oci_errors import Problem
from mirror.listener.responses import ReadyResponse, head, problem_response
from mirror.metrics import Metrics
from mirror.small_files import read_secret
from mirror.throttled_log import ThrottledLog
from mirror.tracing import RequestIds

log = structlog.get_logger(__name__)


class Pushed(Protocol):
    """Called with each tag that Docker Hub says was pushed."""

    async def __call__(self, repository: Repository, tag: Tag) -> bool:
        """Whether the image is one of this mirror's, and will be looked at; False if the push is ignored."""
        ...


class InvalidPush(InvalidInput):
    """Not what Docker Hub sends."""

    what = "push"


def parse_push(body: bytes) -> tuple[Repository, Tag]:
    """What was pushed, by a payload of Docker Hub's. Raises InvalidInput."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidPush(body, "not JSON") from error
    name, tag = _member(payload, "repository", "repo_name"), _member(payload, "push_data", "tag")
    return Repository.parse(DOCKER_HUB, name), Tag.parse(tag)


def _member(payload: Any, *keys: str) -> str:
    value = payload
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise InvalidPush(value, f"{'.'.join(keys)} has to be there, and a text")
    return value


class PushWebhook:
    """Takes webhooks at both addresses.

    Args:
        secret_file: called for the file that holds the secret; None while webhooks are not wanted. The file is read at each use.
        pushed: told of each push that is taken.
    """

    def __init__(self, secret_file: Callable[[], Path | None], pushed: Pushed, metrics: Metrics) -> None:
        self._secret_file = secret_file
        self._pushed = pushed
        self._refused = metrics.refused.labels("webhook")
        self._ids = RequestIds()
        self._log = ThrottledLog(log)

    async def at_registry(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer in the manner of the registry address."""
        name = self._ids.name(request.headers.get("X-Request-Id"))
        try:
            body = json.dumps({"accepted": await self._take(request)}).encode()
        except web.HTTPException as error:
            headers = {"Allow": "POST"} if error.status == 405 else {}
            return problem_response(Problem(error.status, "UNSUPPORTED", error.reason, error.text, headers), name)
        rendered = head(202, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        return ReadyResponse(202, rendered, body, name)

    async def at_admin(self, request: web.Request) -> web.Response:
        """The answer in the manner of the admin address."""
        return web.json_response({"accepted": await self._take(request)}, status=202)

    async def _take(self, request: web.BaseRequest) -> bool:
        """Check a request and pass on what it says; whether that is of use.

        Raises:
            web.HTTPException: it is refused.
        """
        given = unquote_to_bytes(request.raw_path.removeprefix(WEBHOOK_PREFIX).partition("?")[0])
        await self._check(given, request.remote)
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"], text="only POST is taken here")
        body = await read_body(request)
        try:
            repository, tag = parse_push(body)
        except InvalidInput as error:
            log.info("audit", action="webhook", client=request.remote, refused=str(error))
            raise web.HTTPBadRequest(text=str(error)) from error
        accepted = await self._pushed(repository, tag)
        log.info("audit", action="webhook", image=f"{repository}:{tag}", accepted=accepted, client=request.remote)
        return accepted

    async def _check(self, given: bytes, client: str | None) -> None:
        """Answer a wrong secret as if there were nothing here."""
        path = self._secret_file()
        secret = None if path is None else await self._secret(path)
        if secret is not None:
            if hmac.compare_digest(given, secret):
                return
            self._refused.inc()
            self._log.tell("warning", "audit", "wrong secret", action="webhook", client=client, refused="wrong secret")
        raise web.HTTPNotFound(text="there is nothing of this kind here")

    async def _secret(self, path: Path) -> bytes | None:
        """The current secret; None (logged) if the file cannot be read, or holds what could be guessed."""
        try:
            secret = await read_secret(path)
        except OSError as error:
            self._log.tell("error", "webhook_secret_unreadable", file=str(path), cause=error.strerror)
            return None
        if len(secret.decode(errors="replace")) < MIN_WEBHOOK_SECRET:
            cause = f"it holds fewer than {MIN_WEBHOOK_SECRET} characters"
            self._log.tell("error", "webhook_secret_refused", file=str(path), cause=cause)
            return None
        return secret
