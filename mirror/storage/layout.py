"""The paths of a store. Only a parsed digest makes a path.

<store>/LAYOUT                            the version of the layout
<store>/blobs/<algorithm>/<2 hex>/<hex>   verified content, never changed
<store>/partial/<algorithm>/<hex>[.map]   content that is arriving, and its chunk map
<store>/imports/                          files of imports that have not ended (`staging`)
<store>/tmp/                              small files before they are renamed into blobs/
<store>/index/                            facts about the above; may be lost without harm
<store>/account                           the used space (`space_quota`)
<store>/generation                        changes when cached facts become stale (`generation`)
<store>/janitor.lock, eviction.lock       locked by the process that cleans up, and by the one that evicts
<store>/manifests.lock                    locked in part by processes that fetch manifests
<store>/events.lock                       locked by the process that reads the events of a cluster
<store>/objects.lock                      locked by the process that uploads to the bucket
<store>/sync.lock                         locked by the process that keeps tags in sync
<store>/scrub                             the position of the scrub
<store>/traffic                           the counts of pulls and bytes of the last week (`traffic_file`)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.digest import Digest
from mirror.errors import ConfigurationError

LAYOUT = "registry-mirror store, layout 1\n"
_PARENTS = ("blobs", "partial")
_DIRECTORIES = (*_PARENTS, *(f"{parent}/{name}" for parent in _PARENTS for name in HEX_DIGITS), "imports", "tmp", "index")


@dataclass(frozen=True)
class Layout:
    """The paths of one store.

    Attributes:
        root: the store's directory, absolute.
    """

    root: str

    @property
    def blobs(self) -> str:
        """Directory of the cached blobs."""
        return f"{self.root}/blobs"

    def blob(self, digest: Digest) -> str:
        """Path of a cached blob."""
        return f"{self.blobs}/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"

    def partial(self, digest: Digest) -> str:
        """Path of the bytes of a partial blob."""
        return f"{self.root}/partial/{digest.algorithm}/{digest.encoded}"

    def chunk_map(self, digest: Digest) -> str:
        """Path of the chunk map of a partial blob."""
        return f"{self.partial(digest)}.map"

    @property
    def imports(self) -> str:
        """Directory of the files of imports that have not ended."""
        return f"{self.root}/imports"

    @property
    def index(self) -> str:
        """Directory of the index."""
        return f"{self.root}/index"

    @property
    def account(self) -> str:
        """File with the used space."""
        return f"{self.root}/account"

    @property
    def generation(self) -> str:
        """File that changes when cached facts become stale."""
        return f"{self.root}/generation"

    @property
    def janitor_lock(self) -> str:
        """Locked by the process that cleans up, until it ends."""
        return f"{self.root}/janitor.lock"

    @property
    def eviction_lock(self) -> str:
        """Locked by a process while it evicts."""
        return f"{self.root}/eviction.lock"

    @property
    def sync_lock(self) -> str:
        """Locked by the process that runs sync jobs, until it ends."""
        return f"{self.root}/sync.lock"

    @property
    def objects_lock(self) -> str:
        """Locked by the process that uploads to the bucket, until it ends."""
        return f"{self.root}/objects.lock"

    @property
    def events_lock(self) -> str:
        """Locked by the process that reads the events of a cluster, until it ends."""
        return f"{self.root}/events.lock"

    @property
    def events_position(self) -> str:
        """File that keeps how far the events of a cluster were read; without the index there is nothing that they change."""
        return f"{self.index}/events"

    @property
    def manifest_turns(self) -> str:
        """Locked, a byte for each digest, while manifests are fetched."""
        return f"{self.root}/manifests.lock"

    @property
    def scrub_cursor(self) -> str:
        """File with the position of the scrub."""
        return f"{self.root}/scrub"

    @property
    def traffic(self) -> str:
        """File with the counts of the last week."""
        return f"{self.root}/traffic"

    @property
    def temporary(self) -> str:
        """Directory of temporary files."""
        return f"{self.root}/tmp"  # noqa: S108 - inside the store

    def prepare(self) -> None:
        """Create what is missing, and check that this is a writable store of this layout.

        Raises:
            ConfigurationError: it has another layout, is not a directory, or is not writable.
        """
        marker = Path(self.root, "LAYOUT")
        try:
            # One by one: makedirs gives the mode to the last directory only.
            for directory in ("", *_DIRECTORIES):
                os.makedirs(f"{self.root}/{directory}", mode=0o700, exist_ok=True)
            # A crash or a full disk may leave an empty marker.
            if not marker.exists() or not marker.stat().st_size:
                self._mark(marker)
            # Earlier versions left it readable for all users.
            marker.chmod(0o600)
            found = marker.read_text(errors="replace")
            probe = Path(self.temporary, f"probe-{os.getpid()}")
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigurationError([self._unusable(error)]) from error
        self._refuse_another(found)

    def require(self) -> None:
        """Check that this is a store of this layout, and create nothing.

        Raises:
            ConfigurationError: it is not a store, has another layout, or cannot be read.
        """
        try:
            found = Path(self.root, "LAYOUT").read_text(errors="replace")
        except FileNotFoundError as error:
            problem = f"storage.path: {self.root!r} is no store: it has no LAYOUT; a relative path starts where a command runs"
            raise ConfigurationError([problem]) from error
        except OSError as error:
            raise ConfigurationError([self._unusable(error)]) from error
        # A crash or a full disk may leave it empty; the next start writes it.
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
        # Atomically: another worker of this store may read it at the same moment.
        written = Path(self.temporary, f"LAYOUT-{os.getpid()}")
        written.touch(0o600)
        written.write_text(LAYOUT)
        written.replace(marker)
