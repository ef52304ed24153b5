"""Small bundles that ask for much work: it is done once, its depth is bounded, and the end of the import ends it."""

import asyncio
import threading

from mirror.transfer import docker_archive
from mirror.transfer.decompression import Decompressor
from mirror.transfer.imports import Imports
from tests.support.names import MIB
from tests.support.waiting import eventually
from tests.transfer.bundles import ATTACHED, OCI_MANIFEST, Image, contents, crane, descriptor, layout, named

APP = "docker.io/library/app"


async def test_layer_is_decompressed_once(mirror, send, monkeypatch):
    """An image names one layer as often as it likes."""
    await mirror.reload(offline=True)
    decompressors = []

    def counted():
        decompressors.append(Decompressor())
        return decompressors[-1]

    monkeypatch.setattr(docker_archive, "Decompressor", counted)
    sent = await send(crane("app:1", *[b"the same"] * 3, b"another"))
    assert [image.result for image in sent.images] == ["imported"]
    assert len(decompressors) == 2


async def test_chain_of_referrers(mirror, send):
    """A referrer of a referrer, and so on: what is deeper than any tool attaches is refused, and the image is imported."""
    await mirror.reload(offline=True)
    chain = [Image(b"layer")]
    for number in range(8):
        chain.append(Image(b"%d" % number, subject=descriptor(chain[-1].raw, OCI_MANIFEST)))
    attached = [one.descriptor(annotations={ATTACHED: f"{APP}@{one.digest}"}) for one in chain[1:]]
    sent = await send(layout([named(chain[0], f"{APP}:1"), *attached], contents(*chain)))
    assert [image.result for image in sent.images] == ["imported"] * 5 + ["refused"] * 4
    assert "more than 4 deep" in sent.images[5].cause
    assert sent.images[6].cause == f"what it is about, {chain[5].digest}, is not held"


async def test_stop_ends_a_long_decompression(mirror, monkeypatch):
    """A mirror that stops does not wait until a bomb has come to its end."""
    began, ended = threading.Event(), threading.Event()

    class Bomb(Decompressor):
        def feed(self, data):
            began.set()
            while not ended.is_set():
                yield bytes(MIB)

    monkeypatch.setattr(docker_archive, "Decompressor", Bomb)

    imports = Imports()
    imports.configure(mirror.graph.cache, "docker.io")

    async def run():
        async with imports.begin(None) as running:
            await running.feed(crane("app:1", b"layer"))
            await running.finish()

    task = asyncio.create_task(run())
    try:
        await eventually(began.is_set)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=20)
        assert done
        assert not list((mirror.store_path / "imports").iterdir())
    finally:
        ended.set()
        await asyncio.wait([task])
