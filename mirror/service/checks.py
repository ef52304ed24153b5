"""Checks a configuration against the world: disk, ports, certificates, clock, upstreams, accounts."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterable

from mirror import __version__
from mirror.admin.checks import check_accounts, clock_skews, credential_problems, host_checks
from mirror.config.model import Config
from mirror.config.types import Address
from mirror.core.checks import Check, check_clock
from mirror.core.counts import CountTable
from mirror.errors import ConfigurationError, CredentialsRefused, UpstreamError
from mirror.listener.sockets import listen
from mirror.metrics import Metrics
from mirror.service.graph import build_registry
from mirror.upstream.asking import ask
from mirror.upstream.connections import Connections
from mirror.upstream.http import Http, Limits
from mirror.upstream.registry import Registry
from mirror.upstream.upstream import Upstream

_TIMEOUT_S = 2.0


async def probe(config: Config) -> list[Check]:
    """Check everything that can be checked without serving."""
    checks = [*host_checks(config), *_ports(config)]
    connect = Limits(connect=config.downloads.connect_timeout)
    client = Http(connect, f"registry-mirror/{__version__}", Connections(CountTable.private()))
    await client.start()
    registries = [build_registry(name, config, client, Metrics(), {}) for name in config.registries]
    try:
        checks += await ask_upstreams(registries)
        checks += check_accounts(config, registries, credential_problems(registries))
        return [*checks, check_clock(clock_skews(registries)), *await _objects(config)]
    finally:
        for registry in registries:
            await registry.close()
        await client.close()


async def _objects(config: Config) -> list[Check]:
    if not config.objects.is_enabled:
        return []
    from mirror.service.objects import probe_bucket  # noqa: PLC0415 - see `mirror.service.services.Services`

    return [await probe_bucket(config.objects)]


async def ask_upstreams(registries: Iterable[Registry]) -> list[Check]:
    """Ask each upstream once, with its account, and return a check for each. None of the requests is a pull."""
    asked = [_ask(registry.name, upstream) for registry in registries for upstream in registry.upstreams]
    return await asyncio.gather(*asked)


async def _ask(registry: str, upstream: Upstream) -> Check:
    name = f"registries.{registry}"
    try:
        await ask(upstream)
    except CredentialsRefused:
        # The check of the account says so.
        pass
    except UpstreamError as error:
        text = str(error)
        return Check(name, ok=False, text=text if upstream.name in text else f"{upstream.name}: {text}")
    return Check(name, ok=True, text=f"{upstream.name} answers")


def _ports(config: Config) -> list[Check]:
    serving = _is_mirror(config.admin.listen)
    return [
        _port(key, address, serving=serving)
        for key, address in (("listen", config.listen), ("admin.listen", config.admin.listen))
    ]


def _port(key: str, address: Address, *, serving: bool) -> Check:
    try:
        listen(key, address).close()
    except ConfigurationError as error:
        if serving:
            return Check(key, ok=True, text=f"{address}: a mirror serves there")
        return Check(key, ok=False, text=str(error).removeprefix(f"{key}: "))
    return Check(key, ok=True, text=f"{address} is free")


def _is_mirror(address: Address) -> bool:
    """Whether a mirror answers at an admin address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared, not listened on
    connection = http.client.HTTPConnection(host, address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().getheader("Server") == "registry-mirror"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
