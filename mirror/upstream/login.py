"""The account of the mirror at an upstream: read at each use, and retried with growing pauses after it was refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from mirror.core.breaker import Admission, Breaker
from mirror.errors import CredentialsRefused
from mirror.small_files import read_text

log = structlog.get_logger(__name__)

# Pauses before the same credentials are tried again: Docker Hub locks an account for ten minutes after too many wrong passwords.
FIRST_PAUSE_S, MAX_PAUSE_S = 60.0, 3600.0


@dataclass(frozen=True)
class Credentials:
    """User name and password. Never printed."""

    username: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Account:
    """A configured account."""

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


@dataclass(frozen=True)
class LoginRefusals:
    """What is known of refused credentials.

    Attributes:
        count: how often in a row they were refused.
        wait: seconds until they may be sent again.
    """

    count: int = 0
    wait: float = 0.0


class AskLoginRefusals(Protocol):
    """Asks other mirrors about credentials; bounded in time."""

    async def __call__(self, credentials: Credentials, *, takes_turn: bool) -> LoginRefusals: ...


@dataclass(frozen=True)
class LoginSharing:
    """What a cluster hangs into a login, so that several mirrors do not all show an upstream a wrong password.

    Attributes:
        has_news: whether other mirrors may have said something since the last question.
        ask: awaited before credentials are sent that are not known to be right, or after news.
        refused: called when the upstream has refused credentials.
        accepted: called when it has accepted them for the first time.
        undecided: called when it has said neither: nobody has to wait for that any more.
    """

    has_news: Callable[[], bool]
    ask: AskLoginRefusals
    refused: Callable[[Credentials, LoginRefusals], None]
    accepted: Callable[[Credentials], None]
    undecided: Callable[[Credentials], None]


class Login:
    """The credentials for one upstream, and whether it accepts them.

    Attributes:
        problem: for people: why the credentials cannot be used now; None if they can, or that is not known.
        anonymous_fallback: send requests without credentials while they cannot be used.
        sharing: None for a mirror by itself.

    Args:
        account: its password is read at each use, so that a new one applies at once; None for an anonymous mirror.
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
        self.clock = clock
        self.sharing: LoginSharing | None = None
        self._known: Credentials | None = None
        self._accepted = False
        self._breaker = Breaker(FIRST_PAUSE_S, MAX_PAUSE_S, threshold=1)
        self._lock = asyncio.Lock()
        # One read at a time: a slow one must not bring back an old password.
        self._reading = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def serialized(self) -> AsyncIterator[None]:
        """Admit one request at a time until the credentials are known to be right: many wrong ones at once lock an account."""
        async with contextlib.AsyncExitStack() as lock:
            if not self.is_settled:
                await lock.enter_async_context(self._lock)
            if self.is_settled:
                # The request before this one has proved them right: no other one has to wait.
                await lock.aclose()
            yield

    @contextlib.contextmanager
    def shown(self, credentials: Credentials | None) -> Iterator[None]:
        """Send credentials inside the context; other mirrors are told its end if it brings no outcome."""
        try:
            yield
        finally:
            sharing = self.sharing
            if sharing is not None and credentials is not None and not self._accepted and self._breaker.admits(self.clock()):
                sharing.undecided(credentials)

    @property
    def has_account(self) -> bool:
        """Whether an account is configured."""
        return self._account is not None

    @property
    def is_settled(self) -> bool:
        """Whether there are no credentials, or the upstream is known to accept them."""
        return self._account is None or self._accepted

    async def credentials(self) -> Credentials | None:
        """The credentials to send, None for an anonymous request.

        Raises:
            CredentialsRefused: the password cannot be read, or the credentials were refused a short time ago.
        """
        if self._account is None:
            return None
        try:
            found = await self._current(self._account)
        except CredentialsRefused:
            if self.anonymous_fallback:
                return None
            raise
        await self._learn(found)
        now = self.clock()
        if self._breaker.admits(now):
            return found
        if self.anonymous_fallback:
            return None
        refusal = CredentialsRefused("the credentials were refused: check username and password_file")
        raise refusal.again("not tried again for now", max(1.0, self._breaker.wait(now)))

    async def refresh(self) -> None:
        """Read the password, and drop `problem` if it is another one than the one that was refused."""
        if self._account is not None:
            with contextlib.suppress(CredentialsRefused):
                await self._current(self._account)

    @property
    def wait(self) -> float:
        """Seconds until refused credentials are sent again."""
        return self._breaker.wait(self.clock())

    def accepted(self, credentials: Credentials) -> None:
        """Note that the upstream accepts credentials."""
        if credentials == self._known:
            if self.sharing is not None and not self._accepted:
                self.sharing.accepted(credentials)
            self._accepted = True
            self._breaker.succeeded()
            self.problem = None

    def refused(self, credentials: Credentials) -> None:
        """Note that the upstream refuses credentials."""
        if credentials == self._known:
            self._accepted = False
            now = self.clock()
            admission = Admission.NORMAL if self._breaker.is_closed else Admission.TRIAL
            if self._breaker.wait(now) == 0.0:
                self._breaker.failed(now, admission)
                if self.sharing is not None:
                    self.sharing.refused(credentials, LoginRefusals(self._breaker.pauses, self.wait))
            self.problem = "refused: check username and password_file"
        log.error("credentials_refused", username=credentials.username, again_in_seconds=round(self.wait))

    async def _learn(self, credentials: Credentials) -> None:
        """Ask other mirrors whether the upstream refuses credentials, unless it is known to accept them and there is no news."""
        sharing = self.sharing
        if sharing is None or not self._breaker.admits(self.clock()) or (self._accepted and not sharing.has_news()):
            return
        found = await sharing.ask(credentials, takes_turn=not self._accepted)
        if credentials != self._known or (self._accepted and not found.wait):
            return
        self._breaker.take_over(found.count, self.clock() + found.wait)
        if found.wait:
            self._accepted = False
            self.problem = "refused (another node tried): check username and password_file"
            log.error("credentials_refused", username=credentials.username, again_in_seconds=round(self.wait), by="another node")

    async def _current(self, account: Account) -> Credentials:
        """Read the credentials. Others than before are neither accepted nor refused yet."""
        async with self._reading:
            try:
                found = await account.credentials()
            except CredentialsRefused as error:
                self.problem = str(error)
                raise
            if found != self._known:
                self._known, self._accepted = found, False
                self._breaker = Breaker(FIRST_PAUSE_S, MAX_PAUSE_S, threshold=1)
            if self._breaker.is_closed:
                self.problem = None
            return found
