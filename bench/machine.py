"""Brings the machine into the same state before each turn."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

PAGE_BYTES = 4096


def level(memory: int) -> None:
    """Have what others have left written to the disk, and `memory` bytes at hand.

    The host of a virtual machine takes back memory that has been free for some seconds (free page reporting of the kernel).
    The first use of such memory takes up to ten times as long. It would fall to whichever server comes next after a pause or
    after the deletion of a large file. The same holds for the disk: a flush also waits for what others have written.
    """
    os.sync()
    with mmap.mmap(-1, memory) as taken:
        taken.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, memory, PAGE_BYTES):
            taken[page] = 1


@contextmanager
def one_core() -> Iterator[None]:
    """Have this process, and all that it starts meanwhile, run on one core.

    Between two cores of a virtual machine the kernel wakes up a client by an interrupt that costs more than what the server does
    for it. Their number depends on where the processes come to run: two mirrors of the same code differ by a sixth.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
