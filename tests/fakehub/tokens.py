"""The token dance (distribution-spec's companion, Token Authentication Specification)."""

import base64
import binascii
import hmac
import json
import re
from datetime import UTC, datetime
from typing import TypedDict
from urllib.parse import parse_qs

from .answer import Answer, as_json, error
from .catalog import Catalog
from .connection import Request
from .ledger import Seen
from .settings import SERVICE, Settings

SECRET = b"secret of the fake's token host"


class Claims(TypedDict):
    """What a token says: its user, the repositories it opens, its end in seconds since the epoch."""

    user: str | None
    pull: list[str]
    until: float


class BadCredentialsError(Exception):
    """The user is unknown or the password is wrong."""


def basic_user(authorization: str | None, users: dict[str, str]) -> str | None:
    """The user of a Basic header, or None without one. Raises BadCredentialsError."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as bad:
        raise BadCredentialsError from bad
    if user not in users or users[user] != password:
        raise BadCredentialsError
    return user


def _sign(payload: bytes) -> str:
    return hmac.new(SECRET, payload, "sha256").hexdigest()


class Tokens:
    """Issues tokens and checks them. A token names the repositories it opens, its user and its end."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self.realm = ""

    def answer(self, request: Request, seen: Seen) -> Answer:
        """What the token host says to GET /token?service=…&scope=…"""
        if seen.path != "/token":
            return error(404, "UNKNOWN", "no such page")
        if request.method != "GET":
            return error(405, "UNSUPPORTED", "only GET")
        try:
            user = basic_user(seen.authorization, self._settings.users)
        except BadCredentialsError:
            return as_json(401, {"details": "incorrect username or password"})
        query = parse_qs(seen.query)
        if query.get("service") != [SERVICE]:
            return error(400, "UNKNOWN", "unknown service")
        granted = [name for scope in query.get("scope", []) if (name := self._granted(scope, user))]
        token = self._issue(user, granted)
        issued_at = datetime.fromtimestamp(self._settings.now(), UTC).isoformat()
        return as_json(
            200,
            {
                "token": token,
                "access_token": token,
                "expires_in": self._settings.token_lifetime,
                "issued_at": issued_at.replace("+00:00", "Z"),
            },
        )

    def may_pull(self, name: str, user: str | None) -> bool:
        repository = self._catalog.repositories.get(name)
        return repository is not None and (repository.readers is None or user in repository.readers)

    def read(self, token: str) -> Claims | None:
        """What a token says, or None if it is not one or has expired."""
        encoded, _, signature = token.partition(".")
        try:
            payload = base64.urlsafe_b64decode(encoded)
        except (binascii.Error, ValueError):
            return None
        if not hmac.compare_digest(_sign(payload), signature):
            return None
        claims: Claims = json.loads(payload)
        return claims if claims["until"] > self._settings.now() else None

    def _granted(self, scope: str, user: str | None) -> str | None:
        # As on the Hub, a scope that may not be had is left out and the answer is 200 all the same.
        found = re.fullmatch(r"repository:([^:]+):(?:[a-z*]+,)*(?:pull|\*)(?:,[a-z*]+)*", scope)
        return found[1] if found and self.may_pull(found[1], user) else None

    def _issue(self, user: str | None, repositories: list[str]) -> str:
        until = self._settings.now() + self._settings.token_lifetime
        payload = json.dumps({"user": user, "pull": repositories, "until": until}).encode()
        return f"{base64.urlsafe_b64encode(payload).decode()}.{_sign(payload)}"
