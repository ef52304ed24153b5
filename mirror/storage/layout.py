"""Where things lie in the store. Only a parsed digest makes a path.

<store>/LAYOUT                            which layout this is
<store>/blobs/<algorithm>/<2 hex>/<hex>   verified content, never changed
<store>/partial/<algorithm>/<hex>[.map]   content in the making, and its chunk map
<store>/tmp/                              small files on their way to blobs/
<store>/index/                            facts about the above; may be lost without harm
<store>/account                           how much room is taken (`room`)
<store>/generation                        changes when something stops being true (`generation`)
<store>/janitor.lock, eviction.lock       locked by the process that cleans up, and by the one that evicts
<store>/manifests.lock                    locked in part by processes that fetch manifests
<store>/sync.lock                         locked by the process that keeps tags in sync
<store>/scrub                             how far the scrub has come
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mirror.core.digest import Digest
from mirror.errors import ConfigurationError

LAYOUT = "registry-mirror store, layout 1\n"


@dataclass(frozen=True)
class Layout:
    """The paths of one store.

    Attributes:
        root: the store's directory, absolute.
    """

    root: str

    @property
    def blobs(self) -> str:
        """Directory of the held blobs."""
        return f"{self.root}/blobs"

    def blob(self, digest: Digest) -> str:
        """Path of a held blob."""
        return f"{self.blobs}/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"

    def partial(self, digest: Digest) -> str:
        """Path of the bytes of a blob in the making."""
        return f"{self.root}/partial/{digest.algorithm}/{digest.encoded}"

    def chunk_map(self, digest: Digest) -> str:
        """Path of the chunk map of a blob in the making."""
        return f"{self.partial(digest)}.map"

    @property
    def index(self) -> str:
        """Directory of the index."""
        return f"{self.root}/index"

    @property
    def account(self) -> str:
        """The account of how much room is taken."""
        return f"{self.root}/account"

    @property
    def generation(self) -> str:
        """Changes when something stops being true."""
        return f"{self.root}/generation"

    @property
    def janitor_lock(self) -> str:
        """Locked for good by the process that cleans up."""
        return f"{self.root}/janitor.lock"

    @property
    def eviction_lock(self) -> str:
        """Locked by whoever evicts, while it does."""
        return f"{self.root}/eviction.lock"

    @property
    def sync_lock(self) -> str:
        """Locked for good by the process that carries out orders to sync."""
        return f"{self.root}/sync.lock"

    @property
    def manifest_turns(self) -> str:
        """Locked, a byte for each, while manifests are fetched."""
        return f"{self.root}/manifests.lock"

    @property
    def scrub_cursor(self) -> str:
        """How far the scrub has come."""
        return f"{self.root}/scrub"

    @property
    def temporary(self) -> str:
        """Directory of files that have no name yet."""
        return f"{self.root}/tmp"  # noqa: S108 - inside the store

    def prepare(self) -> None:
        """Create what is missing and check that this is a store that we understand and can write to.

        Raises:
            ConfigurationError: another layout, not a directory, or not writable.
        """
        marker = Path(self.root, "LAYOUT")
        try:
            # Each by itself: the mode is that of the last one, not of those above it.
            for directory in (
                "",
                "blobs",
                "blobs/sha256",
                "blobs/sha512",
                "partial",
                "partial/sha256",
                "partial/sha512",
                "tmp",
                "index",
            ):
                os.makedirs(f"{self.root}/{directory}", mode=0o700, exist_ok=True)
            # Empty is what a crash or a full disk leaves of a marker that was just being written.
            if not marker.exists() or not marker.stat().st_size:
                self._mark(marker)
            # Earlier versions have left it readable for all.
            marker.chmod(0o600)
            found = marker.read_text(errors="replace")
            probe = Path(self.temporary, f"probe-{os.getpid()}")
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigurationError([self._unusable(error)]) from error
        self._refuse_another(found)

    def require(self) -> None:
        """Check that this is a store that we understand, and create nothing.

        Raises:
            ConfigurationError: it is none, or of another layout, or cannot be read.
        """
        try:
            found = Path(self.root, "LAYOUT").read_text(errors="replace")
        except FileNotFoundError as error:
            problem = f"storage.path: {self.root!r} is no store: it has no LAYOUT; a relative path starts where a command runs"
            raise ConfigurationError([problem]) from error
        except OSError as error:
            raise ConfigurationError([self._unusable(error)]) from error
        # Empty is what a crash or a full disk leaves; the next start writes it.
        self._refuse_another(found or LAYOUT)

    def _unusable(self, error: OSError) -> str:
        return f"storage.path: the store {self.root!r} cannot be used: {error.strerror or error}"

    def _refuse_another(self, found: str) -> None:
        if found != LAYOUT:
            problem = (
                f"storage.path: {self.root!r} holds {found.strip()[:80]!r}, but this version writes {LAYOUT.strip()!r}; "
                "name another directory or remove this one"
            )
            raise ConfigurationError([problem])

    def _mark(self, marker: Path) -> None:
        # In one piece: another worker of this store may be looking at the same moment.
        written = Path(self.temporary, f"LAYOUT-{os.getpid()}")
        written.touch(0o600)
        written.write_text(LAYOUT)
        written.replace(marker)
