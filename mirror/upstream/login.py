"""The account that an upstream knows the mirror by: read afresh, and not tried again and again when it is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from mirror.core.breaker import Admission, Breaker
from mirror.errors import CredentialsRefused
from mirror.small_files import read_text

log = structlog.get_logger(__name__)

# Docker Hub locks an account for ten minutes after too many wrong passwords. Seconds until the same ones are tried again.
FIRST, LONGEST = 60.0, 3600.0


@dataclass(frozen=True)
class Credentials:
    """What an upstream knows the mirror by. Never printed."""

    username: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Account:
    """An account as it is configured."""

    username: str
    password_file: Path

    async def credentials(self) -> Credentials:
        """Read the password. Raises CredentialsRefused if the file is unreadable or empty."""
        try:
            password = (await read_text(self.password_file)).strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "no text"
            raise CredentialsRefused(f"password_file {self.password_file} cannot be read: {cause}") from error
        if not password:
            raise CredentialsRefused(f"password_file {self.password_file} is empty")
        return Credentials(self.username, password)


class Login:
    """The credentials for one upstream, and whether it takes them.

    Attributes:
        problem: for people: why they cannot be used now, if that has been found out.
        anonymous_fallback: go on without them while they cannot be used.

    Args:
        account: its password is read at each use, so that a new one counts at once; None for an anonymous mirror.
    """

    def __init__(
        self,
        account: Account | None,
        *,
        anonymous_fallback: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self.problem: str | None = None
        self.anonymous_fallback = anonymous_fallback
        self._clock = clock
        self._known: Credentials | None = None
        self._accepted = False
        self._breaker = Breaker(FIRST, LONGEST, threshold=1)
        self._turn = asyncio.Lock()
        # One read at a time: a slow one must not bring back an old password.
        self._reading = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One at a time, as long as nobody knows whether the credentials are right: many wrong ones at once lock an account."""
        async with contextlib.AsyncExitStack() as turn:
            if self._account is not None and self._is_doubtful():
                await turn.enter_async_context(self._turn)
            if not self._is_doubtful():
                # Found out by who went before: nobody behind has to wait any more.
                await turn.aclose()
            yield

    @property
    def is_settled(self) -> bool:
        """Whether there are no credentials, or the upstream is known to take them."""
        return self._account is None or not self._is_doubtful()

    def _is_doubtful(self) -> bool:
        return not self._accepted

    async def credentials(self) -> Credentials | None:
        """What to show, or None for nothing.

        Raises:
            CredentialsRefused: there are none that could be read, or they have lately been refused.
        """
        if self._account is None:
            return None
        try:
            found = await self._current(self._account)
        except CredentialsRefused:
            if self.anonymous_fallback:
                return None
            raise
        now = self._clock()
        if self._breaker.admits(now):
            return found
        if self.anonymous_fallback:
            return None
        refusal = CredentialsRefused("the credentials were refused: check username and password_file")
        raise refusal.again("not tried again for now", max(1.0, self._breaker.wait(now)))

    async def look(self) -> None:
        """Look whether there are other credentials than those that are known not to be of use."""
        if self._account is not None:
            with contextlib.suppress(CredentialsRefused):
                await self._current(self._account)

    @property
    def wait(self) -> float:
        """Seconds until credentials that were refused are shown again."""
        return self._breaker.wait(self._clock())

    def accepted(self, credentials: Credentials) -> None:
        """The upstream has taken them."""
        if credentials == self._known:
            self._accepted = True
            self._breaker.succeeded()
            self.problem = None

    def refused(self, credentials: Credentials) -> None:
        """The upstream has refused them."""
        if credentials == self._known:
            self._accepted = False
            now = self._clock()
            admission = Admission.NORMAL if self._breaker.is_closed else Admission.TRIAL
            if self._breaker.wait(now) == 0.0:
                self._breaker.failed(now, admission)
            self.problem = "refused: check username and password_file"
        log.error("credentials_refused", username=credentials.username, again_in_seconds=round(self.wait))

    async def _current(self, account: Account) -> Credentials:
        """What is configured now. Whether other credentials than before are taken nobody knows."""
        async with self._reading:
            try:
                found = await account.credentials()
            except CredentialsRefused as error:
                self.problem = str(error)
                raise
            if found != self._known:
                self._known, self._accepted = found, False
                self._breaker = Breaker(FIRST, LONGEST, threshold=1)
            if self._breaker.is_closed:
                self.problem = None
            return found
