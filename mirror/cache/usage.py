"""Times of last use: collected in memory, written in batches.

A request for a manifest uses the whole image: a client that has the layers requests only the manifest, and its layers must not be
evicted before it. So everything that a manifest needs gets its time of use, a little later, and blobs a little later than
manifests: eviction never removes a part before the manifest that needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository, Tag
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import attached, reach
from mirror.storage.index import Index

# A part counts as used this much later than the manifest that needs it: more than the resolution of file times.
_PART_DELAY_S = 0.01


@dataclass(slots=True)
class _Noted:
    """The requests for one manifest by one reference."""

    digest: Digest
    when: float
    times: int = 1


class Usage:
    """The manifests and blobs used since the last `write`.

    Attributes:
        on_use: called in a thread with each digest whose use is written, and the time of the use.
    """

    def __init__(self) -> None:
        self.on_use: Callable[[Digest, float], None] = lambda *_: None
        self._manifests: dict[tuple[Repository, Reference], _Noted] = {}
        self._blobs: dict[Digest, float] = {}

    def note_manifest(self, repository: Repository, reference: Reference, digest: Digest, now: float) -> None:
        """Note that a client got a manifest. Takes less than a microsecond."""
        key = (repository, reference)
        noted = self._manifests.get(key)
        if noted is None:
            self._manifests[key] = _Noted(digest, now)
        else:
            noted.digest, noted.when = digest, now
            noted.times += 1

    def last(self, repository: Repository, reference: Reference) -> float:
        """The time of the last request for a manifest that is not written yet; 0 if there is none."""
        noted = self._manifests.get((repository, reference))
        return 0.0 if noted is None else noted.when

    def note_blob(self, digest: Digest, now: float) -> None:
        """Note that a client got a blob or a range of it."""
        self._blobs[digest] = now

    def write(self, files: BlobFiles, index: Index) -> None:
        """Write the noted uses to the store. Blocks; call it in a thread."""
        manifests, self._manifests = self._manifests, {}
        blobs, self._blobs = self._blobs, {}
        latest: dict[Digest, float] = {}
        # Copies: a request that runs now may still write into the old dictionaries.
        for (repository, reference), noted in list(manifests.items()):
            # Signatures are used with their subjects.
            for digest in (noted.digest, *attached(index, repository, noted.digest)):
                latest[digest] = max(noted.when, latest.get(digest, 0.0))
            if isinstance(reference, Tag):
                index.tags.note_pull(repository, reference, noted.when, noted.times)
        for digest, when in list(blobs.items()):
            self._touch(files, digest, when)
        for digest, when in latest.items():
            reached = reach(files, [digest])
            for blob in reached.blobs:
                self._touch(files, blob, when + 2 * _PART_DELAY_S)
            for manifest in reached.manifests - {digest}:
                self._touch(files, manifest, when + _PART_DELAY_S)
            self._touch(files, digest, when)

    def _touch(self, files: BlobFiles, digest: Digest, when: float) -> None:
        files.touch(digest, when)
        self.on_use(digest, when)
