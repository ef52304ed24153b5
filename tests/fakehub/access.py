"""Who may ask the registry for what."""

from .answer import Answer, error
from .faults import with_headers
from .ledger import Seen
from .settings import SERVICE, Settings
from .tokens import BadCredentialsError, Tokens, basic_user


class Access:
    """Checks the Authorization header of requests to the registry."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self._settings = settings
        self._tokens = tokens

    def refuse(self, seen: Seen, actions: str = "pull") -> Answer | None:
        """The 401 for this request, or None if it may go on."""
        if self._settings.auth == "none":
            return None
        if self._settings.auth == "basic":
            return self._refuse_basic(seen)
        return self._refuse_bearer(seen, actions)

    def _refuse_basic(self, seen: Seen) -> Answer | None:
        try:
            user = basic_user(seen.authorization, self._settings.users)
        except BadCredentialsError:
            user = None
        if user is None:
            return self._unauthorized(seen, 'Basic realm="Registry"', "pull", challenge_only=True)
        if seen.repository is None or self._tokens.may_pull(seen.repository, user):
            return None
        return error(403, "DENIED", "requested access to the resource is denied")

    def _refuse_bearer(self, seen: Seen, actions: str) -> Answer | None:
        scheme, _, token = (seen.authorization or "").partition(" ")
        claims = self._tokens.read(token) if scheme.lower() == "bearer" else None
        scope = f"repository:{seen.repository}:{actions}" if seen.repository else None
        if seen.kind == "catalog":
            scope = "registry:catalog:*"
        if claims is None:
            problem = "invalid_token" if seen.authorization else None
            return self._unauthorized(seen, self._bearer(scope, problem), actions, challenge_only=True)
        if scope is None:
            return None
        # Asked again at every request: a repository may have become private since the token was issued.
        name = seen.repository or ""
        if actions == "pull" and name in claims["pull"] and self._tokens.may_pull(name, claims["user"]):
            return None
        challenge = self._bearer(scope, "insufficient_scope")
        return self._unauthorized(seen, challenge, actions, challenge_only=False)

    def _bearer(self, scope: str | None, problem: str | None) -> str:
        challenge = f'Bearer realm="{self._tokens.realm}",service="{SERVICE}"'
        if scope:
            challenge += f',scope="{scope}"'
        return challenge + (f',error="{problem}"' if problem else "")

    def _unauthorized(self, seen: Seen, challenge: str, actions: str, *, challenge_only: bool) -> Answer:
        detail = [
            {"Type": "repository", "Class": "", "Name": seen.repository, "Action": action}
            for action in actions.split(",")
            if seen.repository
        ]
        answer = error(401, "UNAUTHORIZED", "authentication required", detail or None)
        answer.challenge = challenge_only
        return with_headers(answer, {"WWW-Authenticate": challenge})
