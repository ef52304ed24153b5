"""Checks that a running mirror repeats: the file system of the store, the certificate, the accounts, and the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from mirror.config.model import Config
from mirror.config.tls import certificate_end
from mirror.core.checks import Check, check_account, check_certificate, check_disk
from mirror.storage.owner import keeps_owners
from mirror.upstream.login import Login
from mirror.upstream.registry import Registry


def host_checks(config: Config) -> list[Check]:
    """Return the checks of a configuration. Blocks for a moment."""
    return [check_storage(config), *check_owners(config), *check_tls(config)]


def check_owners(config: Config) -> list[Check]:
    """Check that the limits of registries can be kept; nothing without one."""
    limited = [name for name, entry in config.registries.items() if entry.max_size]
    path = Path(os.path.realpath(config.storage.path))
    if not limited or not path.exists():
        return []
    if keeps_owners(str(path)):
        return [Check("registries.max_size", ok=True, text="the file system keeps extended attributes")]
    keys = ", ".join(f"registries.{name}.max_size" for name in limited)
    text = f"the file system of {path} keeps no extended attributes (user_xattr), so it has no effect: {keys}"
    return [Check("registries.max_size", ok=False, text=text)]


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


def check_accounts(config: Config, registries: Iterable[Registry], problems: Mapping[str, str]) -> list[Check]:
    """Check the account of each registry that has one.

    Args:
        problems: why accounts cannot be used, by registry; see `credential_problems`.
    """
    accounts = ((registry, config.registries[registry.name].username) for registry in registries)
    return [
        check_account(registry.name, username, problems.get(registry.name), accepted=_is_accepted(registry))
        for registry, username in accounts
        if username is not None
    ]


def credential_problems(registries: Iterable[Registry]) -> dict[str, str]:
    """Return why the accounts of registries cannot be used."""
    found = {
        registry.name: "; ".join(f"{one.name}: {_problem(one.login)}" for one in registry.upstreams if one.login.problem)
        for registry in registries
    }
    return {name: text for name, text in found.items() if text}


def clock_skews(registries: Iterable[Registry]) -> dict[str, float]:
    """Return the seconds by which this machine's clock is ahead of those of the upstreams that have told their time."""
    upstreams = (upstream for registry in registries for upstream in registry.upstreams)
    return {upstream.name: skew for upstream in upstreams if (skew := upstream.health.time_of_day.skew) is not None}


def _is_accepted(registry: Registry) -> bool:
    return any(upstream.login.is_settled for upstream in registry.upstreams)


def _problem(login: Login) -> str:
    return f"{login.problem}{'; pulls go on without the account' if login.anonymous_fallback else ''}"
