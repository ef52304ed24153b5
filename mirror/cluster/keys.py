"""The names in Redis. All of a cluster have one hash slot, so that scripts run on Redis Cluster, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository, Tag

# A version that does not understand the values of another one uses other keys.
_LAYOUT = 1


@dataclass(frozen=True)
class Keys:
    """The keys of one cluster.

    Attributes:
        name: of the cluster.
        scope: returns the scope of a registry; see `mirror.core.scope.scope_of`.
    """

    name: str
    scope: Callable[[str], str]

    def lease(self, digest: Digest) -> str:
        """Who fetches a blob, or holds it."""
        return self._key(f"b:{digest}")

    def askers(self, digest: Digest) -> str:
        """The nodes that have asked for a blob, first one first. Each streams from one that asked earlier."""
        return self._key(f"at:{digest}")

    def askers_of_zone(self, digest: Digest, zone: str) -> str:
        """The same list of the nodes of one zone."""
        return self._key(f"at:{digest}@{zone}")

    def checksums(self, digest: Digest) -> str:
        """The checksums of the chunks of a blob that nodes hold."""
        return self._key(f"ck:{digest}")

    def manifest(self, digest: Digest) -> str:
        """The media type and bytes of a manifest."""
        return self._key(f"mf:{digest}")

    def manifest_turn(self, digest: Digest) -> str:
        """The node whose turn it is to fetch a manifest, or why the last one failed."""
        return self._key(f"ml:{digest}")

    def grant(self, kind: str, repository: Repository, digest: Digest) -> str:
        """The size of content that upstream has granted to a repository."""
        return self._key(f"gr:{self.scope(repository.registry)}|{repository.path}|{kind}|{digest}")

    def tag(self, repository: Repository, tag: Tag) -> str:
        """What upstream has answered last about a tag."""
        return self._key(f"tag:{self.scope(repository.registry)}|{repository.path}|{tag}")

    def tag_turn(self, repository: Repository, tag: Tag) -> str:
        """The node whose turn it is to check a tag, or why the last one failed."""
        return self._key(f"tl:{self.scope(repository.registry)}|{repository.path}|{tag}")

    def sight(self, repository: Repository, digest: Digest) -> str:
        """When a manifest was first seen in a repository, and for which references it was released."""
        return self._key(f"seen:{self.scope(repository.registry)}|{repository.path}|{digest}")

    def kept_tag(self, repository: Repository, tag: Tag) -> str:
        """What a tag names on the nodes whose moves may be held back."""
        return self._key(f"kept:{self.scope(repository.registry)}|{repository.path}|{tag}")

    def refusal(self, kind: str, repository: Repository, reference: Reference) -> str:
        """Whether upstream lacks or denies content: 1 or 2."""
        return self._key(f"no:{self.scope(repository.registry)}|{kind}|{repository.path}|{reference}")

    @property
    def events(self) -> str:
        """The stream of what all nodes have to know."""
        return self._key("ev")

    def stored(self, digest: Digest) -> str:
        """The bytes of an object in the bucket."""
        return self._key(f"s3:{digest}")

    @property
    def todo(self) -> str:
        """The digests of objects that a node writes or deletes, by the time until which it may."""
        return self._key("todo")

    @property
    def used(self) -> str:
        """The digests of objects by their last use."""
        return self._key("used")

    @property
    def objects_size(self) -> str:
        """The bytes of all objects."""
        return self._key("s3bytes")

    def leader(self, work: str) -> str:
        """The node that does work for the whole cluster."""
        return self._key(f"lead:{work}")

    @property
    def sync_round(self) -> str:
        """When the present round of the resync began."""
        return self._key("lead:sync")

    def quota(self, registry: str, source: str) -> str:
        """What is left of the pull limit that upstream counts for a source."""
        return self._key(f"bu:{self.scope(registry)}|{source}")

    def upstream(self, registry: str, url: str) -> str:
        """What the nodes say of an upstream that is out of order."""
        return self._key(f"up:{self.scope(registry)}|{url}")

    def account(self, registry: str, upstream: str, mac: str) -> str:
        """Whether an upstream refuses an account, and who tries it. The name does not reveal the password."""
        return self._key(f"ac:{self.scope(registry)}|{upstream}|{mac}")

    def purge(self, order: str) -> str:
        """What each node has removed by the order of an event."""
        return self._key(f"pg:{order}")

    def order(self, name: str) -> str:
        """What the nodes say of an order of `sync` or `warm`."""
        return self._key(f"or:{name}")

    def same_order(self, fingerprint: str) -> str:
        """The order that wants the same, and that no node has begun yet."""
        return self._key(f"os:{fingerprint}")

    @property
    def orders_for_one(self) -> str:
        """The orders that one node carries out, by the time until which it has them."""
        return self._key("one")

    def told(self, receiver: str, kind: str, image: str) -> str:
        """The digest and the time of the last notification of a kind about an image for a receiver."""
        return self._key(f"told:{receiver}|{kind}|{image}")

    def notices(self, receiver: str) -> str:
        """The names of the notifications for a receiver that have not arrived, by the time until which a node sends them."""
        return self._key(f"notices:{receiver}")

    def notice(self, name: str) -> str:
        """What a notification says."""
        return self._key(f"notice:{name}")

    @property
    def nodes(self) -> str:
        """The nodes by the time of their last beat."""
        return self._key("nodes")

    def node(self, name: str) -> str:
        """What a node says of itself."""
        return self._key(f"node:{name}")

    @property
    def probe(self) -> str:
        """A key that nodes write to find out whether Redis takes writes."""
        return self._key("probe")

    def _key(self, rest: str) -> str:
        return f"rm:{{{self.name}}}:{_LAYOUT}:{rest}"
