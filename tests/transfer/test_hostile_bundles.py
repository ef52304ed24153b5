"""Bundles that are refused: each with its reason, nothing of it visible, nothing outside the store, and memory flat."""

import gzip
import io
import json
import resource
import tarfile
from collections.abc import Callable, Iterator

import pytest
import pytest_asyncio
from backports import zstd

from mirror.transfer.layout import MAX_MEMBERS
from tests.support.mirrors import SHARED
from tests.support.names import MIB, manifest_path, sha256
from tests.transfer.bundles import OCI_INDEX, Image, Index, Tar, bundle, contents, docker_save, dumped, header, layout, named

NAME = "docker.io/library/app:1"
IMAGE = Image(b"one", b"two")
GOOD = bundle(NAME, IMAGE)
LAYER = f"blobs/sha256/{sha256(IMAGE.layers[0])[7:]}"
FOLDER = "a" * 64


def prefixed(name: str, data: bytes = b"", **fields: object) -> bytes:
    """A bundle with one more member, the first one."""
    alone = Tar().add(name, data, **fields).close()
    length = 512 + len(data) + -len(data) % 512
    return alone[:length] + GOOD


def damaged(find: bytes) -> bytes:
    """The bundle with a flipped bit in the content that contains these bytes."""
    at = GOOD.index(find) + len(find) // 2
    return GOOD[:at] + bytes([GOOD[at] ^ 1]) + GOOD[at + 1 :]


def pax(**records: str) -> bytes:
    lines = b"".join(record(key, value) for key, value in records.items())
    return header("pax", b"%011o" % len(lines), b"x") + lines + bytes(-len(lines) % 512)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def with_manifest(**changes: object) -> bytes:
    """A bundle whose manifest says something else, and has the right digest."""
    body = {**json.loads(IMAGE.raw), **changes}
    image = Image(b"one", b"two")
    image.raw = dumped(body)
    return layout([named(image, NAME)], [*IMAGE.blobs, image.raw])


def lying_layer() -> bytes:
    layers = json.loads(IMAGE.raw)["layers"]
    return with_manifest(layers=[{**layers[0], "size": layers[0]["size"] + 1}, *layers[1:]])


def endless(name: str = "blobs/sha256/" + "0" * 64) -> Iterator[bytes]:
    """A member of a TiB, of which the sender goes on to send zeros."""
    yield header(name, b"\x80" + (1 << 40).to_bytes(11, "big"))
    for _ in range(64):
        yield bytes(MIB)


def million() -> Iterator[bytes]:
    """A million empty files."""
    for start in range(0, 1_000_000, 1000):
        yield b"".join(header(f"{number}/VERSION") for number in range(start, start + 1000))


def bomb(compress: Callable[[bytes], bytes], size: int) -> bytes:
    """A layer of zeros that takes a thousandth of its size."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("x.tar")
        info.size = size
        tar.addfile(info, io.BytesIO(bytes(size)))
    return compress(out.getvalue())


def deep() -> bytes:
    """Indexes within indexes."""
    roots: list[Index | Image] = [Image(b"one")]
    blobs = contents(roots[0])
    for _ in range(8):
        index = Index()
        entry = roots[-1].descriptor(platform={"os": "linux", "architecture": "amd64"})
        index.raw = dumped({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
        index.digest = sha256(index.raw)
        roots.append(index)
        blobs.append(index.raw)
    return layout([named(roots[-1], NAME)], blobs)


def cut_layer() -> bytes:
    """A compressed layer without its end."""
    packed, config = gzip.compress(b"layer")[:-9], dumped({"rootfs": {"diff_ids": [sha256(b"layer")]}})
    tar = Tar().add("0.tar.gz", packed).add(sha256(config), config)
    entry = {"Config": sha256(config), "RepoTags": ["app:1"], "Layers": ["0.tar.gz"]}
    return tar.add("manifest.json", dumped([entry])).close()


# What is refused as a whole: the bundle, and what the answer says.
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "path that leads out": (lambda: prefixed("../../etc/passwd", b"x"), "'../../etc/passwd': its name leads out"),
    "path that leads out in the middle": (lambda: prefixed("blobs/../../x", b"x"), "leads out of the archive"),
    "absolute path": (lambda: prefixed("/etc/passwd", b"x"), "'/etc/passwd': its name is absolute"),
    "path of two spellings": (lambda: prefixed("blobs//x", b"x"), "empty part"),
    "path with a control character": (lambda: prefixed("a\nb", b"x"), "cannot be printed"),
    "symbolic link": (
        lambda: prefixed("index.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a symbolic link to '/etc/passwd'",
    ),
    "layer that links out of the archive": (
        lambda: prefixed(f"{FOLDER}/layer.tar", type=tarfile.SYMTYPE, linkname="../../etc/passwd"),
        "a symbolic link to '../../etc/passwd'",
    ),
    "hard link": (lambda: prefixed(LAYER, type=tarfile.LNKTYPE, linkname="index.json"), "a hard link"),
    "character device": (lambda: prefixed("x", type=tarfile.CHRTYPE), "a character device"),
    "block device": (lambda: prefixed("x", type=tarfile.BLKTYPE), "a block device"),
    "pipe": (lambda: prefixed("x", type=tarfile.FIFOTYPE), "a pipe"),
    "sparse file of GNU tar": (lambda: header("x", kind=b"S") + GOOD, "a sparse file"),
    "sparse file of pax": (lambda: pax(**{"GNU.sparse.major": "1"}) + header("x.tar") + GOOD, "sparse file"),
    "name of pax that leads out": (lambda: pax(path="../x") + header("x.tar") + GOOD, "leads out"),
    "size of pax that is none": (lambda: pax(size="-1") + header("x.tar") + GOOD, "its size is no number"),
    "records of pax without end": (lambda: header("pax", b"%011o" % (1 << 30), b"x") + bytes(MIB), "records of 1073741824 bytes"),
    "long name of a MiB": (lambda: header("././@LongLink", b"%011o" % MIB, b"L") + bytes(MIB), "a name of 1048576 bytes"),
    "negative size": (lambda: header("x.tar", b"\xff" * 12) + GOOD, "its size is negative"),
    "impossible size": (lambda: header("x.tar", b"\x80" + b"\x7f" * 11) + GOOD, "its size is impossible"),
    "size that is no number": (lambda: header("x.tar", b"0000000zzz") + GOOD, "no number"),
    "duplicate name": (lambda: prefixed("index.json", b"{}"), "'index.json': the archive has this name twice"),
    "wrong checksum": (lambda: GOOD[:10] + b"!" + GOOD[11:], "checksum"),
    "cut in a header": (lambda: GOOD[: len(GOOD) // 1024 * 512 + 100], "it was cut"),
    "cut before the end mark": (lambda: GOOD.rstrip(b"\0") + bytes(-len(GOOD.rstrip(b"\0")) % 512), "it was cut"),
    "cut gzip": (lambda: gzip.compress(GOOD)[:-20], "it was cut"),
    "cut zstd": (lambda: zstd.compress(GOOD)[:-20], "it was cut"),
    "damaged gzip": (lambda: gzip.compress(GOOD)[:200] + b"xxxx" + gzip.compress(GOOD)[204:], "damaged"),
    "data after the end": (lambda: GOOD + GOOD, "data follows the end mark"),
    "zeros after the end": (lambda: GOOD + bytes(4 * MIB), "follow the end mark"),
    "bomb in gzip": (lambda: bomb(gzip.compress, 20 * MIB), "200 times"),
    "bomb in zstd": (lambda: bomb(zstd.compress, 20 * MIB), "200 times"),
    "window of zstd": (
        lambda: zstd.compress(GOOD + bytes(32 * MIB), options={zstd.CompressionParameter.window_log: 27}),
        "window",
    ),
    "member of a TiB": (endless, "storage.max_size is 50GiB"),
    "million entries": (million, f"more than {MAX_MEMBERS} members"),
    "much that belongs to no image": (lambda: prefixed("README", bytes(17 * MIB)), "belongs to no image"),
    "blob of no digest": (lambda: prefixed("blobs/md5/" + "0" * 32, b"x"), "no digest that can be verified"),
    "index.json of many MiB": (lambda: Tar().add("index.json", bytes(5 * MIB)).close(), "at most 4194304"),
    "index.json that is no JSON": (lambda: Tar().add("index.json", b"{").close(), "'index.json'"),
    "index.json nested without end": (lambda: Tar().add("index.json", b"[" * MIB).close(), "'index.json'"),
    "index.json that is no index": (lambda: Tar().add("index.json", b"[]").close(), "'index.json'"),
    "manifest.json that is no list": (lambda: Tar().add("manifest.json", b"{}").close(), "'manifest.json': is no list"),
    "manifest.json without layers": (lambda: Tar().add("manifest.json", b"[{}]").close(), "no Config"),
    "manifest.json with a name of a MiB": (lambda: docker_save("app:1", entry={"Config": "x" * MIB}), "no Config"),
    "manifest.json with a name of control characters": (lambda: docker_save("app:1", entry={"Layers": ["\x1b[2J"]}), "no Layers"),
    "layout of another version": (
        lambda: prefixed("oci-layout", dumped({"imageLayoutVersion": "9"}))[:1024] + bytes(1024),
        "'9'",
    ),
    "no image": (lambda: layout([], []), "it has no image"),
    "no bundle": (lambda: Tar().add("a.json", b"{}").close(), "it is no bundle"),
    "nothing": (lambda: b"", "it is empty"),
    "three bytes": (lambda: b"abc", "it has only 3 bytes"),
    "text": (lambda: b"hello, world\n" * 100, "no tar"),
    "bzip2": (lambda: b"BZh91AY&SY" + bytes(1000), "bzip2"),
}

# What is refused image by image: the bundle, and the cause.
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "flipped bit in a layer": (lambda: damaged(IMAGE.layers[0]), f"{LAYER} is damaged: its bytes have the digest sha256:"),
    "flipped bit in the manifest": (lambda: damaged(IMAGE.raw), "is damaged"),
    "flipped bit in the configuration": (lambda: damaged(IMAGE.config), "is damaged"),
    "missing layer": (lambda: layout([named(IMAGE, NAME)], [IMAGE.config, IMAGE.layers[1], IMAGE.raw]), sha256(IMAGE.layers[0])),
    "missing manifest": (lambda: layout([named(IMAGE, NAME)], IMAGE.blobs), f"its manifest {IMAGE.digest} is neither"),
    "lying size of a layer": (lying_layer, "and its manifest says"),
    "lying size of the manifest": (
        lambda: layout([{**named(IMAGE, NAME), "size": 1}], contents(IMAGE)),
        "and its descriptor says 1",
    ),
    "manifest that is an index, too": (lambda: with_manifest(manifests=[]), "at once"),
    "manifest that is none": (lambda: with_manifest(config=[]), "invalid"),
    "indexes nested without end": (deep, "nested"),
    "name that is none": (lambda: layout([named(IMAGE, "docker.io/../x:1")], contents(IMAGE)), "invalid name"),
    "two images of one name": (
        lambda: layout([named(IMAGE, NAME), named(Image(b"x"), NAME)], contents(IMAGE, Image(b"x"))),
        "two images of this name",
    ),
    "missing layer of Docker": (
        lambda: docker_save("app:1", entry={"Layers": ["a/layer.tar", "b/layer.tar"]}),
        "is not in the bundle",
    ),
    "configuration of Docker without a digest": (
        lambda: docker_save("app:1", entry={"Config": "config.json"}),
        "states no digest",
    ),
    "wrong configuration of Docker": (lambda: docker_save("app:1", config=b"{}"), "has the digest"),
    "layers beyond number": (
        lambda: docker_save("app:1", entry={"Layers": ["a/layer.tar"] * 1001}),
        "it has 1001 layers; at most 1000 are read",
    ),
    "layer of Docker that is cut": (cut_layer, "is refused: it was cut: the gzip data ends too early"),
    "more layers than in the configuration": (lambda: docker_save("app:1", diff_ids=[sha256(b"one")]), "names 1 layers"),
}


@pytest.fixture(autouse=True)
def few_free_bytes(monkeypatch):
    """A bomb need not be made of hundreds of MiB."""
    monkeypatch.setattr("mirror.transfer.decompression.FREE_BYTES", MIB)


@pytest_asyncio.fixture(loop_scope="module")
async def untouched(shared_mirror):
    """The mirror has nothing of the bundle afterwards, and neither has anybody else."""
    mirror, outside = shared_mirror, shared_mirror.store_path.parent
    before = sorted(outside.iterdir())
    yield mirror
    assert sorted(outside.iterdir()) == before
    assert (await mirror.get(manifest_path("1"))).status == 404
    assert not [path for path in (mirror.store_path / "blobs").rglob("*") if path.is_file()]
    assert not list((mirror.store_path / "imports").iterdir())
    assert mirror.store.quota.used() == 0
    assert mirror.store.index.tags.is_empty()
    assert mirror.store.index.manifests.is_empty()


def body(made):
    """An iterator is sent as it comes."""
    if isinstance(made, bytes):
        return made

    async def pieces():
        for piece in made:
            yield piece

    return pieces()


@SHARED
@pytest.mark.parametrize("case", REFUSED)
async def test_bundle_is_refused(untouched, send_shared, case):
    make, reason = REFUSED[case]
    sent = await send_shared(body(make()))
    assert (sent.status, reason in sent.error) == (400, True), sent.error


@SHARED
@pytest.mark.parametrize("case", DAMAGED)
async def test_image_is_refused(untouched, send_shared, case):
    make, cause = DAMAGED[case]
    sent = await send_shared(make())
    assert (sent.status, {image.result for image in sent.images}) == (200, {"refused"})
    assert cause in sent.images[0].cause, sent.images[0].cause


@SHARED
async def test_memory_is_flat(untouched, send_shared):
    """The largest of them leave no trace in the memory of the process."""
    await send_shared(body(REFUSED["bomb in gzip"][0]()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in ("member of a TiB", "million entries", "bomb in zstd", "zeros after the end"):
        await send_shared(body(REFUSED[case][0]()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
