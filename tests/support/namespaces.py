"""Network namespaces of threads. Linux, namespaces(7); root is needed."""

import ctypes
import os

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def enter_new() -> int:
    """Move the calling thread into a new network namespace; the namespace, open. Raises OSError."""
    if _LIBC.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    return current()


def current() -> int:
    """The network namespace of the calling thread, open."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(path: str) -> None:
    """Move the calling thread into a network namespace. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")
    finally:
        os.close(descriptor)
