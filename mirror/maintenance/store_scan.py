"""The answer to a survey of the held blobs, asked of a process of its own (`survey`). Blocks; belongs in a thread."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog

from mirror.core.digest import Digest
from mirror.maintenance import scan_process
from mirror.storage.blobs import CachedFile
from mirror.storage.layout import Layout

log = structlog.get_logger(__name__)

# Seconds between two looks at whether the answer is still wanted.
_LOOK = 0.1
_ALGORITHMS = {32: "sha256", 64: "sha512"}


@dataclass(frozen=True)
class StoreScan:
    """What a store held at one time.

    Attributes:
        taken: bytes, each file rounded up to whole blocks.
        pinned: those of them that pinned blobs take.
        blobs: how many.
    """

    taken: int
    pinned: int
    blobs: int
    _oldest: bytes

    def oldest(self) -> Iterator[CachedFile]:
        """The blobs that were used least recently, in the order in which they should go."""
        at = scan_process.HEADER.size
        while at < len(self._oldest):
            used, size, length = scan_process.RECORD.unpack_from(self._oldest, at)
            at += scan_process.RECORD.size + length
            yield CachedFile(Digest.parse(f"{_ALGORITHMS[length]}:{self._oldest[at - length : at].hex()}"), size, used)


def take(
    layout: Layout,
    over: Callable[[], bool],
    most: int = 0,
    pinned: AbstractSet[Digest] = frozenset(),
    *,
    only_pinned: bool = False,
) -> StoreScan | None:
    """Survey the store; None if that failed, or if it was `over` before it was done.

    Args:
        most: so many of the least recently used blobs are named.
        pinned: they are not among those; or only they are.
    """
    argv = [sys.executable, "-I", "-S", scan_process.__file__, layout.blobs, str(most), "only" if only_pinned else "except"]
    pins: bytes | None = "\n".join(digest.encoded for digest in pinned).encode()
    try:
        # In a session of its own, so that an interrupt from the terminal is the mirror's alone to deal with.
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and a file of our own
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        log.error("survey_failed", cause=str(error))
        return None
    with process:
        while not over():
            with contextlib.suppress(subprocess.TimeoutExpired):
                answer, trouble = process.communicate(pins, timeout=_LOOK)
                return _read(answer, trouble, process.returncode)
            # What is to be sent is named once; the next call goes on with it.
            pins = None
        process.kill()
    return None


def _read(answer: bytes, trouble: bytes, status: int) -> StoreScan | None:
    if status or len(answer) < scan_process.HEADER.size:
        log.error("survey_failed", status=status, cause=trouble.decode(errors="replace").strip()[-200:])
        return None
    taken, pinned, blobs = scan_process.HEADER.unpack_from(answer)
    return StoreScan(taken, pinned, blobs, answer)
