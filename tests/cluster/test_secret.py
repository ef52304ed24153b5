"""The secret of a cluster: a request is accepted once, and secrets rotate without an interruption."""

import itertools
import time

import pytest
import structlog

from mirror.cluster import secret as module
from mirror.cluster.secret import ClusterSecret
from mirror.config.cluster import secrets_in
from mirror.core.hmac_token import InvalidToken, SignedRequest

OLD, NEW = "old" * 12, "new" * 12
REQUEST = SignedRequest("GET", "/v2/docker.io/library/app/blobs/sha256:00", "bytes=0-", "http://127.0.0.1:5002")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "secret"


def of(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return ClusterSecret(path, secrets_in(path.read_text()))


def test_token_counts_once(path):
    one, other = of(path, OLD), of(path, OLD)
    token = one.token(REQUEST)
    other.check(REQUEST, token)
    with pytest.raises(InvalidToken, match="used before"):
        other.check(REQUEST, token)


def test_nonces_are_forgotten_with_their_tokens(path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_NONCES", 2)
    one, now = of(path, OLD), time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    for _ in range(2):
        one.check(REQUEST, one.token(REQUEST))
    with pytest.raises(InvalidToken, match="too many"):
        one.check(REQUEST, one.token(REQUEST))
    now += 121
    one.check(REQUEST, one.token(REQUEST))


async def test_rotation_in_three_steps(path, tmp_path):
    """Add the new secret last, move it to the top, remove the old one: whatever node is a step ahead, requests pass."""
    steps = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    for before, after in itertools.pairwise(steps):
        slow, fast = of(path, *before), of(tmp_path / "other", *before)
        (tmp_path / "other").write_text("\n".join(after))
        await fast.refresh()
        slow.check(REQUEST, fast.token(REQUEST))
        fast.check(REQUEST, slow.token(REQUEST))


async def test_unreadable_file_changes_nothing(path):
    one, other = of(path, OLD), of(path, OLD)
    path.unlink()
    await one.refresh()
    other.check(REQUEST, one.token(REQUEST))


def test_time_is_that_of_redis(path):
    """Clocks that are an hour apart do not matter once both nodes know how far they are from Redis."""
    one, other = of(path, OLD), of(path, OLD)
    one.offset, other.offset = 3600.0, 3605.0
    other.check(REQUEST, one.token(REQUEST))
    one.offset = 0.0
    with pytest.raises(InvalidToken, match="time differs"):
        other.check(REQUEST, one.token(REQUEST))


@pytest.mark.parametrize("content", ["", "\n\n", "short", f"{OLD}\nshort"])
async def test_file_that_is_being_written_changes_nothing(content, path):
    """A line that is not whole would be a secret that can be guessed, and that no other node has."""
    one, other = of(path, OLD), of(path, OLD)
    path.write_text(content)
    with structlog.testing.capture_logs() as lines:
        await one.refresh()
    other.check(REQUEST, one.token(REQUEST))
    (line,) = lines
    assert (line["event"], line["file"]) == ("cluster_secret_unusable", str(path))


def test_names_of_what_is_secret(path):
    """All nodes with the secret give the same one, it does not reveal what it names, and its parts are told apart."""
    name = of(path, OLD).name("account", "robot", "password")
    assert name == of(path, OLD, NEW).name("account", "robot", "password")
    assert name != of(path, NEW).name("account", "robot", "password")
    assert len({name, *(of(path, OLD).name("account", *parts) for parts in (("robotp", "assword"), ("robot", "Password")))}) == 3
    assert "password" not in name
