"""When what was used last: noted in memory, written in batches.

Using an image means using all of it: a client that has the layers already asks only for the manifest, and they must not be
evicted from under an image that is in use. So the times of everything that a manifest needs are set with its own, a little
later, and those of blobs a little later than those of manifests: what is needed never goes before what needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository, Tag
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import attached, reach
from mirror.storage.index import Index

# Seconds by which a part counts as used after the manifest that needs it. More than file systems' times are coarse.
_AFTER = 0.01


@dataclass(slots=True)
class _Noted:
    """Requests for one manifest by one name."""

    digest: Digest
    when: float
    times: int = 1


class Usage:
    """What has been used since the last `write`."""

    def __init__(self) -> None:
        self._manifests: dict[tuple[Repository, Reference], _Noted] = {}
        self._blobs: dict[Digest, float] = {}

    def manifest(self, repository: Repository, reference: Reference, digest: Digest, now: float) -> None:
        """A client was given a manifest. Costs less than a microsecond."""
        key = (repository, reference)
        noted = self._manifests.get(key)
        if noted is None:
            self._manifests[key] = _Noted(digest, now)
        else:
            noted.digest, noted.when = digest, now
            noted.times += 1

    def blob(self, digest: Digest, now: float) -> None:
        """A client was given a blob, or a part of it."""
        self._blobs[digest] = now

    def write(self, files: BlobFiles, index: Index) -> None:
        """Write down what has been noted. Blocks; belongs in a thread."""
        manifests, self._manifests = self._manifests, {}
        blobs, self._blobs = self._blobs, {}
        latest: dict[Digest, float] = {}
        # Copies: a request that was just noting something may still have hold of the old ones.
        for (repository, reference), noted in list(manifests.items()):
            # Signatures are of use for as long as what they are about.
            for digest in (noted.digest, *attached(index, repository, noted.digest)):
                latest[digest] = max(noted.when, latest.get(digest, 0.0))
            if isinstance(reference, Tag):
                index.note_pull(repository, reference, noted.when, noted.times)
        for digest, when in list(blobs.items()):
            files.touch(digest, when)
        for digest, when in latest.items():
            reached = reach(files, [digest])
            for blob in reached.blobs:
                files.touch(blob, when + 2 * _AFTER)
            for manifest in reached.manifests - {digest}:
                files.touch(manifest, when + _AFTER)
            files.touch(digest, when)
