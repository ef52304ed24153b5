"""Checks of this host that a running mirror repeats: the file system of the store, and the certificate."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mirror.config.model import Config
from mirror.config.tls import certificate_end
from mirror.core.checks import Check, check_certificate, check_disk


def host_checks(config: Config) -> list[Check]:
    """Return the checks of a configuration. Blocks for a moment."""
    return [check_storage(config), *check_tls(config)]


def check_storage(config: Config) -> Check:
    """Check the directory of the store, or the nearest one above it that exists."""
    path = Path(os.path.realpath(config.storage.path))
    try:
        while not path.exists():
            path = path.parent
        if not os.access(path, os.W_OK | os.X_OK):
            return Check("storage", ok=False, text=f"{path} cannot be written by this user")
        state = os.statvfs(path)
    except OSError as error:
        return Check("storage", ok=False, text=f"{path} cannot be examined: {error.strerror or error}")
    total, free = state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize
    return check_disk(total, free, config.storage.max_size, config.storage.min_free)


def check_tls(config: Config) -> list[Check]:
    """Check the certificate of the registry address; nothing without one."""
    if config.tls.certificate is None:
        return []
    try:
        end = certificate_end(config.tls.certificate)
    except (OSError, ValueError) as error:
        return [Check("tls.certificate", ok=False, text=f"cannot be read: {error}")]
    return [check_certificate("tls.certificate", end, time.time())]
