"""What a mirror that serves checks by itself, and logs: its host once, its upstreams at the start and after each reload."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from mirror.admin.checks import check_accounts, clock_skews, credential_problems, host_checks
from mirror.core.checks import Check, check_clock
from mirror.service.checks import ask_upstreams
from mirror.service.graph import Graph

log = structlog.get_logger(__name__)

# Before upstreams are asked again because the clock seems to be wrong.
_RECHECK_S = 60.0


async def log_host_checks(graph: Graph) -> None:
    """Log what is wrong with the host for the configuration of a graph."""
    _log_failed(await asyncio.to_thread(host_checks, graph.config))


async def log_upstream_checks(graph: Graph) -> None:
    """Ask each upstream of a graph once, with its account, and log what fails; as long as the clock is wrong, ask again."""
    registries = list(graph.registries.values())
    with graph.in_use.hold():
        checks = await ask_upstreams(registries)
        checks += check_accounts(graph.config, registries, credential_problems(registries))
        clock = check_clock(clock_skews(registries))
        _log_failed([*checks, clock])
        log.info("upstreams_checked", failed=[check.name for check in (*checks, clock) if not check.ok])
        while not clock.ok:
            # No client may come to find out that it has been set right.
            await asyncio.sleep(_RECHECK_S)
            await ask_upstreams(registries)
            clock = check_clock(clock_skews(registries))


def _log_failed(checks: Iterable[Check]) -> None:
    for check in checks:
        if not check.ok:
            log.warning("check_failed", check=check.name, said=check.text)
