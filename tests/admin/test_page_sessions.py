"""Sessions of the status page, and failed attempts to sign in."""

import pytest

from mirror.admin.page.attempts import FailedAttempts
from mirror.admin.page.session import SESSION_S, Sessions

SECRET = b"s" * 32


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def sessions(clock, token="t0ken", secret=SECRET):
    found = Sessions(secret, clock)
    found.token = token
    return found


@pytest.mark.parametrize("token", ["t0ken", None, "t\N{LATIN SMALL LETTER O WITH DIAERESIS}ken"])
def test_every_process_knows_a_session(clock, token):
    """A session that one worker began is known to another, and its forms have the same value."""
    session = sessions(clock, token).begin()
    assert sessions(clock, token).find(session.cookie) == session
    assert session.form_value not in session.cookie


def test_a_session_ends(clock):
    """By time, by another token, by no token, and by a restart."""
    session = sessions(clock).begin()
    assert sessions(clock, "other").find(session.cookie) is None
    assert sessions(clock, None).find(session.cookie) is None
    assert sessions(clock, secret=b"x" * 32).find(session.cookie) is None
    clock.now += SESSION_S - 1
    assert sessions(clock).find(session.cookie) is not None
    clock.now += 1
    assert sessions(clock).find(session.cookie) is None


def test_a_session_without_a_token_is_none_with_one(clock):
    """Nobody is signed in because of a cookie from before there was a token."""
    assert sessions(clock, "t0ken").find(sessions(clock, None).begin().cookie) is None


def test_a_forged_cookie_is_none(clock):
    """Whatever is changed, left out or made up."""
    cookie = sessions(clock).begin().cookie
    expires, nonce, check = cookie.split(".")
    forged = [None, "", ".", "..", "a.b.c", f"{int(expires) + 1}.{nonce}.{check}", f"{expires}.{nonce}0.{check}",
              f"{expires}.{nonce}", f"{expires}.{nonce}.", cookie + "x", cookie * 100, "\N{SNOWMAN}", cookie.upper()]  # fmt: skip
    assert [value for value in forged if sessions(clock).find(value) is not None] == []


def test_the_cookie_is_not_the_token(clock):
    """Neither the token nor something that a guess of it can be compared with: the secret of the run is in it, too."""
    one, other = sessions(clock), sessions(clock, secret=b"x" * 32)
    session = one.begin()
    assert "t0ken" not in session.cookie + session.form_value
    assert one.find(session.cookie) is not None
    assert other.find(session.cookie) is None


def test_tokens(clock):
    """Only the token is the token; without one nothing is."""
    assert sessions(clock).is_token("t0ken")
    assert not any(sessions(clock).is_token(given) for given in ("", "t0ke", "t0kenx", "\udcff", "\N{SNOWMAN}"))
    assert not sessions(clock, None).is_token("")


def test_failures_are_limited(clock):
    """Five at once, then one in ten seconds; other clients are not held up; after a while all is forgotten."""
    attempts = FailedAttempts(clock)
    for _ in range(5):
        assert attempts.wait("a") == 0
        attempts.note("a")
    assert attempts.wait("a") == pytest.approx(10)
    assert attempts.wait("b") == 0
    clock.now += 10
    assert attempts.wait("a") == 0
    attempts.note("a")
    assert attempts.wait("a") == pytest.approx(10)
    clock.now += 1000
    for _ in range(5):
        assert attempts.wait("a") == 0
        attempts.note("a")


def test_clients_are_bounded(clock):
    """Very many addresses take no memory without end, and forget nobody who fails now."""
    attempts = FailedAttempts(clock)
    for number in range(5000):
        attempts.note(str(number))
        attempts.note("attacker")
    assert len(attempts._until) <= 1000
    assert attempts.wait("attacker") > 0
