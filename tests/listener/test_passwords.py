"""Checking passwords: what is remembered, and what a guesser can keep busy."""

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest

from mirror.listener.basic_auth import BasicAuthenticator, TooManyChecks
from tests.support.waiting import LIMIT

HASHED = bcrypt.hashpw(b"right", bcrypt.gensalt(4))
LONG = b"x" * 80


def basic(user, password, scheme="Basic"):
    pair = f"{user}:{password}".encode() if isinstance(password, str) else user.encode() + b":" + password
    return f"{scheme} {base64.b64encode(pair).decode()}"


@pytest.fixture
def executor():
    """One thread."""
    with ThreadPoolExecutor(1) as running:
        yield running


@pytest.fixture
def now():
    """The time, to be moved on."""
    return [1000.0]


@pytest.fixture
def passwords(executor, now):
    """One user, and one with a password that is longer than bcrypt looks at."""
    users = {b"alice": HASHED, b"long": bcrypt.hashpw(LONG[:72], bcrypt.gensalt(4)), "ö".encode(): HASHED}
    return BasicAuthenticator(users, executor, lambda: now[0])


@pytest.fixture
def counted(monkeypatch):
    """How often bcrypt was asked."""
    asked, real = [], bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: (asked.append(hashed), real(password, hashed))[1])
    return asked


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (basic("alice", "right"), True),
        (basic("alice", "right", "basic"), True),
        (basic("ö", "right"), True),
        (basic("long", LONG), True),
        (basic("alice", "wrong"), False),
        (basic("alice", ""), False),
        (basic("alice", b"right\x00"), False),
        (basic("alice", b"\xff\xfe"), False),
        (basic("bob", "right"), False),
        (basic("", "right"), False),
        (basic("Alice", "right"), False),
        ("", False),
        ("Basic", False),
        ("Basic !", False),
        ("Basic YWxpY2U=", False),
        ("Basic ü", False),
        ("Bearer abc", False),
        (basic("alice", "right").replace("Basic", "Bearer"), False),
    ],
)
async def test_verdicts(passwords, header, expected):
    """Only a user's own password is right; whatever else comes is wrong, and nothing raises."""
    for _ in range(2):
        assert await passwords.check(header) is expected


async def test_right_ones_are_remembered(passwords, counted, now):
    """Credentials that were right are not checked again for five minutes."""
    header = basic("alice", "right")
    assert passwords.known(header) is None
    assert await passwords.check(header)
    now[0] += 299
    assert passwords.known(header) is True
    now[0] += 2
    assert passwords.known(header) is None
    assert len(counted) == 1


async def test_wrong_ones_are_remembered_shortly(passwords, now):
    """A client that repeats its mistake costs a check in ten seconds."""
    header = basic("alice", "wrong")
    assert not await passwords.check(header)
    assert passwords.known(header) is False
    now[0] += 11
    assert passwords.known(header) is None


async def test_nothing_readable_is_remembered(passwords):
    """What is kept of credentials has neither the password nor the header in it."""
    for password in ("right", "wrong-one"):
        await passwords.check(basic("alice", password))
    kept = repr([list(kept._items) for kept in (passwords._good, passwords._bad)])
    for secret in ("right", "wrong-one", basic("alice", "right")[6:], basic("alice", "wrong-one")[6:]):
        assert secret not in kept


async def test_memory_is_bounded(passwords, monkeypatch):
    """However many wrong passwords come, few are remembered, and the right one is not crowded out."""
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: password == b"right")
    await passwords.check(basic("alice", "right"))
    for number in range(1100):
        await passwords.check(basic("alice", f"wrong {number}"))
    assert len(passwords._bad) == 1024
    assert passwords.known(basic("alice", "right"))


async def test_unknown_users_cost_a_check(passwords, counted):
    """How long an answer takes does not tell whether there is such a user."""
    assert not await passwords.check(basic("bob", "right"))
    assert len(counted) == 1


async def test_same_credentials_share_a_check(passwords, counted):
    """Many requests with the same credentials cost one check."""
    assert all(await asyncio.gather(*(passwords.check(basic("alice", "right")) for _ in range(50))))
    assert len(counted) == 1


async def test_a_guesser_keeps_few_threads_busy(passwords, monkeypatch):
    """However many passwords come at a time, as many are checked as there are threads, few wait, and the rest is sent away."""
    running, most, go_on = 0, 0, threading.Event()

    def check(password, hashed):
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert go_on.wait(LIMIT)
        running -= 1
        return False

    monkeypatch.setattr(bcrypt, "checkpw", check)
    guesses = [asyncio.create_task(passwords.check(basic("alice", f"guess {number}"))) for number in range(40)]
    refused = [task for task in guesses[32:] if isinstance(await asyncio.wait_for(_outcome(task), LIMIT), TooManyChecks)]
    assert len(refused) == 8
    go_on.set()
    assert not any(await asyncio.gather(*guesses[:32]))
    assert most == 1
    assert not await passwords.check(basic("alice", "again"))


async def _outcome(task):
    try:
        return await task
    except TooManyChecks as error:
        return error
