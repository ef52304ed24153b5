"""What this node changes when another one reports a move of a tag, a release, or a denial."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from mirror.aio import in_thread
from mirror.cache.access_index import AccessIndex
from mirror.cluster.events import Event
from mirror.cluster.node import ClusterNode
from mirror.core.digest import Digest
from mirror.core.names import ImagePattern, Reference, Repository, Tag
from mirror.storage.store import Store

log = structlog.get_logger(__name__)

_EVERYTHING = ImagePattern("*", "*", None, None)


class ClusterFacts:
    """Handles the events of other nodes that concern tags, rights and upstreams. Outlives reloads.

    A fact concerns this node if it asks the same upstreams with the same account. A move is not taken over: the tag is only due,
    so that the next pull decides about it as after a check of this node.
    """

    def __init__(self, store: Store, access: AccessIndex) -> None:
        self.clock: Callable[[], float] = time.time
        self._store = store
        self._access = access

    def subscribe(self, node: ClusterNode) -> None:
        """Handle the events of a node's cluster from now on."""
        self._scopes = node.scopes
        node.events.handlers |= {"moved": self._moved, "released": self._released, "denied": self._denied}
        node.events.handlers["upstream"] = node.upstreams.handle
        node.events.forget = self._forget
        self._upstreams = node.upstreams

    async def _moved(self, event: Event) -> None:
        repository, tag = self._repository(event), Tag.parse(event.fields["reference"])
        if repository is not None:
            await in_thread(self._store.threads.note, self._expire, repository, tag, event.fields["digest"])

    def _expire(self, repository: Repository, tag: Tag, digest: str) -> None:
        known = self._store.index.tags.get(repository, tag)
        if known is not None and str(known.digest) != digest:
            # Any later check counts, also that of the other node.
            self._store.index.tags.expire(repository, tag, known.checked)
            self._store.generation.change()

    async def _released(self, event: Event) -> None:
        repository, reference = self._repository(event), _reference(event.fields["reference"])
        if repository is not None:
            digest = Digest.parse(event.fields["digest"])
            await in_thread(self._store.threads.note, self._release, repository, reference, digest)

    def _release(self, repository: Repository, reference: Reference, digest: Digest) -> None:
        holds = self._store.index.holds
        if isinstance(reference, Digest):
            holds.release_digest(repository, reference)
        elif holds.release(repository, reference, digest):
            self._store.generation.change()

    async def _denied(self, event: Event) -> None:
        repository, kind = self._repository(event), event.fields["of"]
        if repository is None or kind not in ("manifest", "blob"):
            return
        reference = _reference(event.fields["reference"])
        if isinstance(reference, Digest):
            self._access.revoke_grant("manifest" if kind == "manifest" else "blob", repository, reference)
        else:
            await in_thread(self._store.threads.note, self._deny, repository, reference, self.clock() - event.age)

    def _deny(self, repository: Repository, tag: Tag, asked: float) -> None:
        if self._store.index.tags.get(repository, tag) is not None:
            self._store.index.tags.note_refusal(repository, tag, asked, self.clock(), delete=False, denied=True)
            self._store.generation.change()

    async def _forget(self) -> None:
        self._upstreams.missed()
        await in_thread(self._store.threads.note, self._forget_checks)
        await in_thread(self._store.threads.note, self._store.index.negative.delete_matching, _EVERYTHING)

    def _forget_checks(self) -> None:
        self._store.index.tags.forget_checks(self.clock())
        self._store.generation.change()

    def _repository(self, event: Event) -> Repository | None:
        """The repository of an event; None if this node has other upstreams or another account there."""
        scope = event.fields["scope"]
        registry = scope.partition("~")[0]
        return Repository.parse(registry, event.fields["name"]) if self._scopes.get(registry) == scope else None


def _reference(text: str) -> Reference:
    return Digest.parse(text) if ":" in text else Tag.parse(text)
