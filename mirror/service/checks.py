"""Checks a configuration against the world before a mirror serves it: disk, ports, certificates, clock, upstreams, accounts."""

from __future__ import annotations

import http.client
import time

from mirror import __version__
from mirror.admin.checks import host_checks
from mirror.config.model import Config
from mirror.config.types import Address
from mirror.core.checks import Check, check_clock
from mirror.core.counts import CountTable
from mirror.core.names import DOCKER_HUB
from mirror.errors import ConfigurationError, UpstreamError
from mirror.listener.sockets import listen
from mirror.metrics import Metrics
from mirror.service.graph import build_registry
from mirror.upstream.asking import ask, date
from mirror.upstream.connections import Connections
from mirror.upstream.http import Http, Limits
from mirror.upstream.upstream import Upstream

# A repository that an account can ask for; that it does not exist elsewhere is an answer.
_SAMPLE = {DOCKER_HUB: "library/hello-world"}
_OTHER_SAMPLE = "registry-mirror/check"
_TIMEOUT_S = 2.0


async def probe(config: Config) -> list[Check]:
    """Check everything that can be checked without serving. Upstreams get two requests each, neither of which is a pull."""
    checks = [*host_checks(config), *_ports(config)]
    connect = Limits(connect=config.downloads.connect_timeout)
    client = Http(connect, f"registry-mirror/{__version__}", Connections(CountTable.private()))
    await client.start()
    registries = [build_registry(name, config, client, Metrics(), {}) for name in config.registries]
    try:
        for registry in registries:
            for upstream in registry.upstreams:
                checks += await _upstream(registry.name, upstream)
    finally:
        for registry in registries:
            await registry.close()
        await client.close()
    return checks


async def _upstream(registry: str, upstream: Upstream) -> list[Check]:
    name = f"registries.{registry}"
    try:
        theirs = await date(upstream)
        now = time.time()
        await ask(upstream, _SAMPLE.get(registry, _OTHER_SAMPLE))
    except (UpstreamError, TimeoutError) as error:
        text = str(error) or "no answer in time"
        return [Check(name, ok=False, text=text if upstream.name in text else f"{upstream.name}: {text}")]
    clock = [] if theirs is None else [check_clock(upstream.name, theirs, now)]
    return [
        Check(
            name, ok=True, text=f"{upstream.name} answers{'' if not upstream.login.has_account else ', and accepts the account'}"
        ),
        *clock,
    ]


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
