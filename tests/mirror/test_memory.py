"""Memory does not grow with what clients ask for."""

import gc
import tracemalloc

import pytest

from tests.fakehub import OCI_MANIFEST
from tests.support.names import APP, MIB
from tests.support.wire import Wire


@pytest.fixture
def growth():
    """Tells how many bytes of objects have come to stay since the last call."""
    tracemalloc.start()
    last = 0

    def measure():
        nonlocal last
        gc.collect()
        now = tracemalloc.get_traced_memory()[0]
        last, grown = now, now - last
        return grown

    yield measure
    tracemalloc.stop()


async def get(wire, target):
    await wire.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return await wire.reply()


async def test_large_manifests(hub, mirror, growth):
    """Manifests of a size that is not kept in memory are not kept there by their headers either."""
    digests = []
    for number in range(20):
        head = f'{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","layers":[],"annotations":{{"n":"{number}"}},'
        head += f'"config":{{"mediaType":"application/json","size":2,"digest":"sha256:{"0" * 64}"}}}}'
        digests.append(hub.add_manifest(APP, head.encode() + b" " * MIB, OCI_MANIFEST))
    async with Wire(mirror.port) as wire:
        await get(wire, "/v2/")
        growth()
        for digest in digests * 2:
            assert (await get(wire, f"/v2/{APP}/manifests/{digest}")).status == 200
        assert growth() < 5 * MIB


async def test_long_targets(hub, mirror, growth):
    """Targets are the client's to choose, so that only those of a usual length are remembered."""
    hub.add_image(APP, "1")
    async with Wire(mirror.port) as wire:
        await get(wire, f"/v2/{APP}/manifests/1")
        growth()
        for number in range(1000):
            assert (await get(wire, f"/v2/{APP}/manifests/1?x={number}{'x' * 7000}")).status == 200
        assert growth() < 2 * MIB
