"""A store that has been in use for long: very many small blobs, each last used at its own time, with images among them."""

import hashlib
import json
import os
import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.content import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.manifest import parse_manifest
from mirror.core.names import Repository, Tag
from mirror.storage.account import Account, on_disk
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.manifests import ManifestRecord
from mirror.storage.parts import parts_of
from mirror.storage.space_quota import SpaceQuota

REGISTRY = "docker.io"
LAYERS = 3
# Of each image.
TAGS = 10
SHARDS = 256
SPREAD_SECONDS = 30 * 86400
# The images were used last of all, and so are what nobody evicts.
IMAGES_USED_AGO = 3600.0
PARTS = 8


@dataclass(frozen=True)
class Filled:
    """What lies in a store.

    Attributes:
        bytes: as the store accounts for them.
        paths: URL paths of the manifests by tag and of their blobs.
    """

    blobs: int
    bytes: int
    manifests: list[str]
    small_blobs: list[str]


def fill(root: Path, blobs: int, images: int) -> Filled:
    """Make a store of `images` images and as many other blobs as it takes to have `blobs`; each is granted by its registry."""
    layout = Layout(str(root))
    layout.prepare()
    plain = blobs - images * (1 + LAYERS)
    for shard in range(SHARDS):
        os.makedirs(f"{root}/blobs/sha256/{shard:02x}", mode=0o700, exist_ok=True)
    oldest = time.time() - SPREAD_SECONDS
    with ProcessPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        parts = [(layout.root, part, plain, oldest) for part in range(PARTS)]
        written = list(pool.map(_write_part, parts))
    filled = _write_images(layout, images, blobs, sum(taken for _, taken in written))
    names = b"".join(names for names, _ in written)
    _grant(layout, [names[start : start + 32].hex() for start in range(0, len(names), 32)])
    os.sync()
    return filled


def _write_part(part: tuple[str, int, int, float]) -> tuple[bytes, int]:
    """Write every PARTS-th blob, directory by directory; the digests, 32 bytes each, and the bytes that they account for.

    A blob is so many bytes of zero, no two of the same length: files of one hole, so that a million of them need no room.
    """
    root, first, count, oldest = part
    shards: list[list[tuple[str, int]]] = [[] for _ in range(SHARDS)]
    names = bytearray()
    taken = 0
    hasher = hashlib.sha256(bytes(first))
    for size in range(first, count, PARTS):
        digest = hasher.digest()
        shards[digest[0]].append((digest.hex(), size))
        names += digest
        taken += on_disk(size)
        hasher.update(bytes(PARTS))
    for shard, entries in enumerate(shards):
        for name, size in entries:
            # Spread over the whole time in an order that has nothing to do with that of the names.
            used = oldest + (size * 7919 % count) / count * (SPREAD_SECONDS - IMAGES_USED_AGO)
            descriptor = os.open(f"{root}/blobs/sha256/{shard:02x}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.ftruncate(descriptor, size)
            os.utime(descriptor, (used, used))
            os.close(descriptor)
    return bytes(names), taken


def _write(path: str, data: bytes, used: float) -> None:
    Path(path).write_bytes(data)
    os.utime(path, (used, used))


def _write_images(layout: Layout, images: int, blobs: int, taken: int) -> Filled:
    now = time.time()
    used = now - IMAGES_USED_AGO
    index = Index(layout.index)
    filled = Filled(blobs, 0, [], [])
    for number in range(images):
        path = f"bench/image-{number // 10}"
        parts = [f"image {number} part {part}".encode() for part in range(LAYERS)]
        raw = _manifest(parts)
        for data in (raw, *parts):
            digest = Digest.of(data)
            _write(layout.blob(digest), data, used)
        filled.small_blobs.extend(f"/v2/{path}/blobs/{Digest.of(data)}" for data in parts)
        filled.manifests.append(f"/v2/{path}/manifests/v{number % 10}")
        taken += sum(on_disk(len(data)) for data in (raw, *parts))
        repository = Repository.parse(REGISTRY, path)
        record = TagRecord(Digest.of(raw), MANIFEST_TYPE, len(raw), checked=now, changed=used, pulled=used)
        for tag in (f"v{number % 10}", *(f"v{number % 10}.{patch}" for patch in range(1, TAGS))):
            index.tags.put(repository, Tag(tag), record)
        index.manifests.put(repository, record.digest, ManifestRecord(MANIFEST_TYPE, len(raw)))
        index.parts.put(repository, record.digest, parts_of(parse_manifest(raw, MANIFEST_TYPE, record.digest)))
        index.grants.put("manifest", str(repository), record.digest, len(raw))
        for data in parts:
            index.grants.put("blob", REGISTRY, Digest.of(data), len(data))
    index.grants.put("blob", REGISTRY, Digest.of(b""), 0)
    index.close()
    room = SpaceQuota(layout, 0, 0)
    room.correct(room.mark(), Account(taken, blobs))
    return Filled(blobs, taken, filled.manifests, filled.small_blobs)


def _manifest(parts: list[bytes]) -> bytes:
    config, *layers = ({"digest": str(Digest.of(data)), "size": len(data)} for data in parts)
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, **config},
        "layers": [{"mediaType": LAYER_TYPE, **layer} for layer in layers],
    }
    return json.dumps(body).encode()


def _grant(layout: Layout, names: list[str]) -> None:
    """Copy the one grant that is there for every blob, in one go: one at a time would take longer than everything else."""
    database = sqlite3.connect(f"{layout.index}/grants/cache.db")
    columns = ("raw", "store_time", "expire_time", "access_time", "access_count", "tag", "size", "mode", "filename", "value")
    with database:
        database.executemany(
            f"INSERT OR IGNORE INTO Cache (key, {', '.join(columns)}) SELECT ?, {', '.join(columns)} FROM Cache WHERE rowid = 1",
            ((f"blob|{REGISTRY}|sha256:{name}",) for name in sorted(names)),
        )
    database.close()
