"""Files of users and hashed passwords."""

import pytest

from mirror.core.htpasswd import InvalidHtpasswd, cost, parse_htpasswd

TAIL = "abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
HASH = f"$2y$05${TAIL}"


def test_users():
    """Users with their hashes, in all three spellings of bcrypt; comments and empty lines say nothing."""
    text = f"# people\n\nalice:{HASH}\r\nbob:$2a$10${TAIL}\n  carol:$2b$14${TAIL}  \nö:{HASH}"
    users = parse_htpasswd(text)
    assert list(users) == [b"alice", b"bob", b"carol", "ö".encode()]
    assert users[b"alice"] == HASH.encode()
    assert [cost(hashed) for hashed in users.values()] == [5, 10, 14, 5]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("bob:hunter2", "'bob': the user's password is not hashed with bcrypt"),
        ("bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "'bob'"),
        ("bob:$apr1$abc$hunter2", "'bob'"),
        ("bob:$6$salt$hunter2", "'bob'"),
        (f"alice:{HASH}\nbob:$2x$05${TAIL}", "'bob'"),
        (f"bob:{HASH}x", "'bob'"),
        (f"bob:{HASH}:x", "'bob'"),
        (f"bob:$2y$31${TAIL}", "'bob': the cost"),
        (f"bob:$2y$03${TAIL}", "'bob': the cost"),
        (f"bob:{HASH}\nbob:{HASH}", "'bob': the user stands there twice, the second time in line 2"),
        (f"\nhunter2{HASH}", "line 2"),
        (f":{HASH}", "line 1"),
        ("", "there is no user in it"),
        ("# nobody", "there is no user in it"),
    ],
)
def test_mistakes(text, named):
    """A mistake names the user or the line, and never the password."""
    with pytest.raises(InvalidHtpasswd) as caught:
        parse_htpasswd(text)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)
