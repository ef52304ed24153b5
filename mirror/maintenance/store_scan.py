"""Runs a scan of the cached blobs in a process of its own (`scan_process`). Blocks; belongs in a thread."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.digest import Digest
from mirror.maintenance import scan_process
from mirror.storage.blobs import CachedFile
from mirror.storage.layout import Layout

log = structlog.get_logger(__name__)

# How often `is_over` is called.
_POLL_INTERVAL_S = 0.1
# By the bytes of their hashes.
_ALGORITHMS = {digits // 2: algorithm for algorithm, digits in HEX_DIGITS.items()}


@dataclass(frozen=True)
class StoreScan:
    """What a store contained at one time.

    Attributes:
        taken: bytes of all blobs, each file rounded up to whole blocks.
        pinned: bytes of the pinned ones.
        blobs: their number.
        registries: bytes and number of the blobs of each registry, "" for none; only of a scan for all registries.
    """

    taken: int
    pinned: int
    blobs: int
    registries: dict[str, tuple[int, int]]
    _answer: bytes
    _first: int

    def candidates(self) -> Iterator[CachedFile]:
        """Yield the blobs to evict first, in the order of their eviction."""
        at = self._first
        while at < len(self._answer):
            used, size, length = scan_process.RECORD.unpack_from(self._answer, at)
            at += scan_process.RECORD.size + length
            yield CachedFile(Digest.parse(f"{_ALGORITHMS[length]}:{self._answer[at - length : at].hex()}"), size, used)


def take(
    layout: Layout,
    is_over: Callable[[], bool],
    most: int = 0,
    pinned: AbstractSet[Digest] = frozenset(),
    *,
    only_pinned: bool = False,
    registry: str = "",
) -> StoreScan | None:
    """Scan the store; None if the scan failed or was ended early.

    Args:
        is_over: True ends the scan.
        most: limit of the candidates for eviction.
        pinned: blobs that are not among the candidates.
        only_pinned: the candidates are the pinned blobs alone.
        registry: look at the blobs of this registry only; `*` for all registries, each apart; "" for all together.
    """
    pins: bytes | None = "\n".join(digest.encoded for digest in pinned).encode()
    try:
        process = _start(layout.blobs, str(most), "only" if only_pinned else "except", registry)
    except OSError as error:
        log.error("survey_failed", cause=str(error))
        return None
    with process:
        while not is_over():
            with contextlib.suppress(subprocess.TimeoutExpired):
                answer, errors = process.communicate(pins, timeout=_POLL_INTERVAL_S)
                return _read(answer, errors, process.returncode)
            # The input is passed once; the next call continues with it.
            pins = None
        process.kill()
    return None


def _start(*args: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-S", scan_process.__file__, *args]
    # In a session of its own: an interrupt from the terminal is for the mirror alone.
    return subprocess.Popen(  # noqa: S603 - this interpreter, and a file of our own
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def _read(answer: bytes, errors: bytes, status: int) -> StoreScan | None:
    if status or len(answer) < scan_process.HEADER.size:
        log.error("survey_failed", status=status, cause=errors.decode(errors="replace").strip()[-200:])
        return None
    taken, pinned, blobs, length = scan_process.HEADER.unpack_from(answer)
    first = scan_process.HEADER.size + length
    rows = (line.split("\t") for line in answer[scan_process.HEADER.size : first].decode().splitlines())
    registries = {name: (int(used), int(count)) for name, used, count in rows}
    return StoreScan(taken, pinned, blobs, registries, answer, first)
