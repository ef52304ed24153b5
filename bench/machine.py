"""Brings the machine into the same state before each turn."""

import mmap
import os

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
