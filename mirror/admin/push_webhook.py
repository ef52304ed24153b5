"""Docker Hub's push webhook: authenticated by the secret in its path.

Its content is not trusted: a push only makes the mirror check an image sooner.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from aiohttp import web

from mirror.admin.json_body import read_body
from mirror.admin.openapi import Operation, describe
from mirror.admin.schemas import FLAG, record
from mirror.admin.sync_operations import SyncOperations
from mirror.config.sections import MIN_WEBHOOK_SECRET
from mirror.core.errors import InvalidInput
from mirror.core.names import DOCKER_HUB, Repository, Tag
from mirror.listener.admission import WEBHOOK_PREFIX
from mirror.listener.oci_errors import Problem
from mirror.listener.responses import ReadyResponse, Rendered, head, problem_response
from mirror.metrics import Metrics
from mirror.small_files import read_secret
from mirror.throttled_log import ThrottledLog
from mirror.tracing import request_id

log = structlog.get_logger(__name__)


class InvalidPush(InvalidInput):
    """A payload that is not Docker Hub's."""

    what = "push"


def parse_push(body: bytes) -> tuple[Repository, Tag]:
    """Return the repository and tag of Docker Hub's payload. Raises InvalidInput."""
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
        raise InvalidPush(value, f"{'.'.join(keys)} has to be a text")
    return value


class PushWebhook:
    """Handles webhooks at both addresses.

    Attributes:
        secret_file: holds the secret and is read at each use; None refuses every webhook.
    """

    def __init__(self, operations: SyncOperations, metrics: Metrics) -> None:
        self.secret_file: Path | None = None
        self._operations = operations
        self._refused = metrics.refused.labels("webhook")
        self._log = ThrottledLog(log)

    async def at_registry(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer in the registry address's format."""
        name = request_id.get()
        try:
            body = json.dumps({"accepted": await self._take(request)}).encode()
        except web.HTTPException as error:
            headers = {"Allow": "POST"} if error.status == 405 else {}
            return problem_response(Problem(error.status, "UNSUPPORTED", error.reason, error.text, headers), name)
        rendered = head(202, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        return ReadyResponse(Rendered(202, rendered, body), name)

    @describe(
        Operation(
            "Docker Hub's webhook; its secret is in the path.",
            {202: record(accepted=FLAG)},
            body={"type": "object"},
            errors=(404, 405),
        )
    )
    async def at_admin(self, request: web.Request) -> web.Response:
        """Answer in the admin address's format."""
        return web.json_response({"accepted": await self._take(request)}, status=202)

    async def _take(self, request: web.BaseRequest) -> bool:
        """Authenticate a push and add its jobs; False if the mirror ignores the image or takes no more jobs.

        Raises:
            web.HTTPException: the request is refused.
        """
        given = unquote_to_bytes(request.raw_path.removeprefix(WEBHOOK_PREFIX).partition("?")[0])
        await self._check(given, request.remote)
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"], text="only POST is allowed here")
        body = await read_body(request)
        try:
            repository, tag = parse_push(body)
        except InvalidInput as error:
            log.info("audit", action="webhook", client=request.remote, refused=str(error))
            raise web.HTTPBadRequest(text=str(error)) from error
        accepted = await asyncio.to_thread(self._operations.pushed, repository, tag)
        log.info("audit", action="webhook", image=f"{repository}:{tag}", accepted=accepted, client=request.remote)
        return accepted

    async def _check(self, given: bytes, client: str | None) -> None:
        """Raise 404 for a wrong secret, so that a guess learns nothing."""
        secret = None if self.secret_file is None else await self._secret(self.secret_file)
        if secret is not None:
            if hmac.compare_digest(given, secret):
                return
            self._refused.inc()
            self._log.log("warning", "audit", "wrong secret", action="webhook", client=client, refused="wrong secret")
        raise web.HTTPNotFound(text="not found")

    async def _secret(self, path: Path) -> bytes | None:
        """Return the current secret; None (logged) if the file is unreadable or the secret too short."""
        try:
            secret = await read_secret(path)
        except OSError as error:
            self._log.log("error", "webhook_secret_unreadable", file=str(path), cause=error.strerror)
            return None
        if len(secret.decode(errors="replace")) < MIN_WEBHOOK_SECRET:
            cause = f"it holds fewer than {MIN_WEBHOOK_SECRET} characters"
            self._log.log("error", "webhook_secret_refused", file=str(path), cause=cause)
            return None
        return secret
