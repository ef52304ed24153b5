"""Files of user names and hashed passwords, as Apache's `htpasswd -B` writes them."""

from __future__ import annotations

import re
from typing import Final

from mirror.core.errors import InvalidInput

# What a check costs doubles with each step; at the most that is allowed here it takes about a second.
_MAX_COST: Final = 14
_BCRYPT: Final = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{53}", re.ASCII)


class InvalidHtpasswd(InvalidInput):
    """A file with a line that is malformed, or with a hash that is not secure."""

    what = "htpasswd file"


def parse_htpasswd(text: str) -> dict[bytes, bytes]:
    """The bcrypt hashes by user name; lines that are empty or begin with `#` are skipped. Raises InvalidHtpasswd."""
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        user, colon, hashed = line.partition(":")
        if not colon or not user:
            raise InvalidHtpasswd(f"line {number}", "expected USER:HASH")
        if user.encode() in users:
            raise InvalidHtpasswd(user, f"the user stands there twice, the second time in line {number}")
        users[user.encode()] = _checked(user, hashed)
    if not users:
        raise InvalidHtpasswd("", "there is no user in it")
    return users


def cost(hashed: bytes) -> int:
    """The cost of a bcrypt hash: checking a password takes 2 to the power of it rounds."""
    return int(hashed[4:6])


def _checked(user: str, hashed: str) -> bytes:
    match = _BCRYPT.fullmatch(hashed)
    if match is None:
        raise InvalidHtpasswd(user, "the user's password is not hashed with bcrypt; `htpasswd -B` does so")
    if not 4 <= int(match["cost"]) <= _MAX_COST:
        raise InvalidHtpasswd(user, f"the cost of the user's hash is not between 4 and {_MAX_COST}")
    return hashed.encode()
