"""Bundles as tests read them: with the standard library, as any tool would."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

from tests.support.names import sha256


class BundleRead:
    """A bundle that was read whole; each blob has been checked against its name.

    Attributes:
        names: of its members, in their order.
        index: its index.json.
        docker: its manifest.json.
        blobs: by digest.
    """

    def __init__(self, raw: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            self.members = tar.getmembers()
            files = {member.name: tar.extractfile(member).read() for member in self.members}  # type: ignore[union-attr]
        self.names = [member.name for member in self.members]
        assert len(set(self.names)) == len(self.names)
        assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        self.index: dict[str, Any] = json.loads(files["index.json"])
        self.docker: list[dict[str, Any]] = json.loads(files["manifest.json"])
        self.blobs = {name.replace("blobs/", "").replace("/", ":"): data for name, data in files.items() if "/" in name}
        assert all(sha256(data) == digest for digest, data in self.blobs.items())

    @property
    def images(self) -> dict[str, str]:
        """The digest of each image, by its name."""
        return {name: entry["digest"] for entry in self.index["manifests"] if (name := _name(entry)) is not None}

    @property
    def attached(self) -> dict[str, str]:
        """The digests of signatures and other referrers, by their names."""
        key = "io.registry-mirror.attached.name"
        return {e["annotations"][key]: e["digest"] for e in self.index["manifests"] if key in e["annotations"]}

    def left_out(self, name: str) -> list[str]:
        """What is left out of an image."""
        (entry,) = [entry for entry in self.index["manifests"] if _name(entry) == name]
        return [digest for digest in entry["annotations"].get("io.registry-mirror.left-out", "").split(",") if digest]


def _name(entry: dict[str, Any]) -> str | None:
    names = {entry["annotations"].get(key) for key in ("io.containerd.image.name", "org.opencontainers.image.ref.name")}
    (name,) = names
    return name
