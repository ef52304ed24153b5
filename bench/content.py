"""What is pulled: a directory laid out like the distribution API, served by the origin and by nginx alike."""

import hashlib
import json
import os
from pathlib import Path

REPOSITORY = "bench/image"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYERS = 6
PIECE = 1 << 20


class Content:
    """Blobs and manifests of one repository as files under `root`/v2/; every method answers the URL path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base = root / "v2" / REPOSITORY
        for kind in ("blobs", "manifests"):
            (self._base / kind).mkdir(parents=True)
        self._noise = os.urandom(PIECE)

    def blob(self, size: int) -> str:
        """Write a blob of `size` bytes that differs from every other one."""
        digest = hashlib.sha256()
        draft = self._base / "draft"
        with open(draft, "wb") as file:
            left = size
            while left:
                # Each piece begins with bytes of its own: noise for gigabytes would take longer than a round.
                piece = (os.urandom(32) + self._noise[32:])[:left]
                digest.update(piece)
                left -= file.write(piece)
        return self._keep(draft, "blobs", f"sha256:{digest.hexdigest()}")

    def blobs(self, count: int, size: int) -> list[str]:
        """`count` different blobs of `size` bytes each."""
        return [self.blob(size) for _ in range(count)]

    def manifest(self, tag: str) -> tuple[str, str]:
        """Write an image manifest of ordinary size; the paths by digest and by `tag`."""
        return self._manifest(tag, [_descriptor(LAYER_TYPE, 1_000_000 * (index + 1)) for index in range(LAYERS)])

    def image_of(self, blob: str, tag: str) -> str:
        """Write an image manifest with one layer, a blob that was written before; the path by `tag`."""
        layer = {"mediaType": LAYER_TYPE, "digest": blob.rpartition("/")[2], "size": self.size(blob)}
        return self._manifest(tag, [layer])[1]

    def _manifest(self, tag: str, layers: list[dict[str, object]]) -> tuple[str, str]:
        body = json.dumps(_image_manifest(layers), indent=2).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return self.hold("manifests", digest, body), self.hold("manifests", tag, body)

    def hold(self, kind: str, reference: str, data: bytes) -> str:
        """Write `data` as one of the `kind` (blobs or manifests) that `reference` names."""
        draft = self._base / "draft"
        draft.write_bytes(data)
        return self._keep(draft, kind, reference)

    def size(self, path: str) -> int:
        """Bytes of the file behind a URL path."""
        return (self.root / path.removeprefix("/")).stat().st_size

    def _keep(self, draft: Path, kind: str, reference: str) -> str:
        draft.rename(self._base / kind / reference)
        return f"/v2/{REPOSITORY}/{kind}/{reference}"


def _image_manifest(layers: list[dict[str, object]]) -> dict[str, object]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, 7023),
        "layers": layers,
    }


def _descriptor(media_type: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{os.urandom(32).hex()}", "size": size}
