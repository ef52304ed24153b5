"""Where the bucket is, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# The client asks again for credentials that expire within five minutes.
_CREDENTIALS_TTL = timedelta(minutes=6)


@dataclass(frozen=True)
class BucketAddress:
    """Where a bucket is, and how it is asked. Times are in seconds.

    Attributes:
        endpoint: the URL of the service; None for that of Amazon.
        access_key_file: two lines, read again every minute; None for the environment, or the role of the host.
        answer_s: limit of the wait for an answer.
        stall_s: limit of the wait for the next bytes of a body.
        part_s: limit of the upload of one part.
    """

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str = "auto"
    access_key_file: Path | None = None
    ca_file: Path | None = None
    answer_s: float = 5.0
    stall_s: float = 15.0
    part_s: float = 60.0


class KeyFile:
    """Gives the client the credentials of a file, each time it asks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> Any:
        """Read the file; raises OSError or ValueError if it is unusable."""
        key, secret = self._path.read_text().split()
        return {"access_key_id": key, "secret_access_key": secret, "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL}
