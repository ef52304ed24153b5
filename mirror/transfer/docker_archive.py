"""Images of `docker save` before Docker 25, and of tools that write its format: a manifest is made for each.

Such an image has layers that are usually not compressed, and no manifest. Its configuration is named by its digest and names
the digests of the uncompressed layers (OCI image-spec, config.md, `rootfs.diff_ids`): so its content is verified, but the digest
of the manifest is another one than the registry's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from io import FileIO
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.media import DOCKER_MANIFEST
from mirror.transfer.decompression import Decompressor
from mirror.transfer.documents import DockerImage
from mirror.transfer.errors import ImageRefused, InvalidBundle
from mirror.transfer.layout import MAX_DOCUMENT_BYTES
from mirror.transfer.receiver import BundleContent, BundleReceiver

_CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE: Final = "application/vnd.docker.image.rootfs.diff.tar"
_COMPRESSED: Final = {b"\x1f\x8b": ".gzip", b"\x28\xb5": ".zstd"}
_CONFIG_NAME: Final = re.compile(r"(?:sha256:|blobs/sha256/)?([0-9a-f]{64})(?:\.json)?", re.ASCII)
_PIECE_BYTES: Final = 1 << 20
# Docker's storage drivers take 128.
_MAX_LAYERS: Final = 1000

NOTE: Final = (
    "the bundle has no manifest for it, so the mirror has made one: its digest is not the registry's. "
    "The configuration matches its name, and the layers match the configuration."
)
"""What the operator is told of such an image."""


class ManifestMaker:
    """Makes the manifests of one bundle, and decompresses each of its layers once. Blocks on files; belongs in a thread.

    Args:
        receiver: has the content of the bundle.
        open_content: opens content for reading.
    """

    def __init__(self, receiver: BundleReceiver, open_content: Callable[[BundleContent], FileIO]) -> None:
        self._receiver = receiver
        self._open = open_content
        # The digest of a layer when it is decompressed, by an algorithm, or why it has none.
        self._unpacked: dict[tuple[Digest, str], Digest | InvalidBundle] = {}

    def make(self, image: DockerImage) -> bytes:
        """Return the manifest of an image, the same bytes for the same content.

        Raises:
            ImageRefused: a part of it is missing or wrong.
            ImportStopped: see that.
        """
        if len(image.layers) > _MAX_LAYERS:
            raise ImageRefused(f"it has {len(image.layers)} layers; at most {_MAX_LAYERS} are read")
        config = self._config(image.config)
        diff_ids = self._diff_ids(config)
        if len(diff_ids) != len(image.layers):
            raise ImageRefused(f"its configuration names {len(diff_ids)} layers, and the bundle {len(image.layers)}")
        layers = [self._layer(name, diff_id) for name, diff_id in zip(image.layers, diff_ids, strict=True)]
        body = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _descriptor(_CONFIG_TYPE, config),
            "layers": layers,
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def _config(self, name: str) -> BundleContent:
        stated = _CONFIG_NAME.fullmatch(name)
        if stated is None:
            raise ImageRefused(f"the name of its configuration, {name!r}, states no digest: nothing could be verified")
        config = self._content(name)
        if config.digest.encoded != stated[1]:
            raise ImageRefused(f"its configuration {name!r} has the digest {config.digest}")
        return config

    def _diff_ids(self, config: BundleContent) -> list[Digest]:
        if config.size > MAX_DOCUMENT_BYTES:
            raise ImageRefused(f"its configuration has {config.size} bytes; at most {MAX_DOCUMENT_BYTES} are read")
        with self._open(config) as file:
            data = file.readall()
        try:
            body: Any = json.loads(data)
            return [Digest.parse(text) for text in body["rootfs"]["diff_ids"] or ()]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ImageRefused(f"its configuration {config.member!r} names no layers") from error

    def _layer(self, name: str, diff_id: Digest) -> dict[str, object]:
        layer = self._content(name)
        with self._open(layer) as file:
            suffix = _COMPRESSED.get(file.read(2))
            file.seek(0)
            found = layer.digest if suffix is None else self._unpacked_digest(layer, file, diff_id.algorithm)
        if isinstance(found, InvalidBundle):
            raise ImageRefused(f"its layer {name!r} is refused: {found.reason}")
        if found != diff_id:
            raise ImageRefused(f"its layer {name!r} has the digest {found}, and the configuration says {diff_id}")
        return _descriptor(_LAYER_TYPE + (suffix or ""), layer)

    def _unpacked_digest(self, layer: BundleContent, file: FileIO, algorithm: str) -> Digest | InvalidBundle:
        key = layer.digest, algorithm
        if key not in self._unpacked:
            try:
                self._unpacked[key] = self._decompressed(file, algorithm)
            except InvalidBundle as error:
                self._unpacked[key] = error.with_traceback(None)
        return self._unpacked[key]

    def _decompressed(self, file: FileIO, algorithm: str) -> Digest:
        hasher, decompressor = hashlib.new(algorithm), Decompressor()
        while data := file.read(_PIECE_BYTES):
            for piece in decompressor.feed(data):
                self._receiver.require_running()
                hasher.update(piece)
        decompressor.close()
        return Digest.parse(f"{algorithm}:{hasher.hexdigest()}")

    def _content(self, name: str) -> BundleContent:
        content = self._receiver.find(name)
        if content is None:
            raise ImageRefused(f"{name!r} is not in the bundle")
        if content.damage is not None:
            raise ImageRefused(f"{content.member!r} is damaged: {content.damage}")
        return content


def _descriptor(media_type: str, content: BundleContent) -> dict[str, object]:
    return {"mediaType": media_type, "size": content.size, "digest": str(content.digest)}
