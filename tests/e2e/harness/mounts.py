"""Small file systems of their own for a store. Root is needed; whatever happens, they are unmounted."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.harness.process import find_command

_PIECE = 1 << 20


def _run(*argv: str) -> str:
    return subprocess.run(
        [find_command(argv[0]), *argv[1:]], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@contextmanager
def memory_disk(directory: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes."""
    directory.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory))
    try:
        yield directory
    finally:
        _run("umount", str(directory))


@contextmanager
def loop_disk(directory: Path, size: int) -> Iterator[Path]:
    """An ext4 of `size` bytes that becomes read-only with the first error."""
    image = directory.with_suffix(".img")
    directory.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", str(image))
    _run("mount", "-o", "loop,errors=remount-ro", str(image), str(directory))
    try:
        yield directory
    finally:
        _run("umount", str(directory))
        image.unlink()


def break_disk(mounted: Path) -> None:
    """Have the kernel find an error in a `loop_disk`, which makes it read-only under whoever writes."""
    device = Path(_run("findmnt", "-no", "SOURCE", str(mounted))).name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")


def fill_up(path: Path) -> None:
    """Write a file until its file system has not a byte left."""
    with path.open("wb", buffering=0) as file:
        for piece in (_PIECE, 4096, 1):
            try:
                while True:
                    file.write(os.urandom(piece))
            except OSError:
                pass
