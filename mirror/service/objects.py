"""Builds the client of a bucket behind the store. Imported only if one is configured."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mirror.config.objects import ObjectsConfig
from mirror.core.byte_rate import ByteRate
from mirror.core.checks import Check
from mirror.core.counts import CountTable, Total
from mirror.core.digest import Digest
from mirror.core.networks import parse_network
from mirror.errors import UpstreamError
from mirror.metrics import Metrics
from mirror.objects.address import BucketAddress
from mirror.objects.bucket import Bucket
from mirror.objects.facts import ObjectFacts
from mirror.objects.inventory import BucketInventory
from mirror.objects.keys import LAYOUT_KEY
from mirror.objects.local_facts import LocalFacts
from mirror.objects.objects import BucketWriter, Objects
from mirror.objects.owed import OwedUploads
from mirror.objects.reader import ObjectReader, Published
from mirror.objects.redirects import ObjectRedirects, RedirectRules
from mirror.objects.sweeper import Sweeper, SweepLimits
from mirror.objects.tag_reach import TagReach
from mirror.objects.uploader import TURN_S, Uploader
from mirror.objects.use_report import REPORT_INTERVAL_S, UseReport

if TYPE_CHECKING:
    from mirror.service.services import Services

# A use may be reported so late, and a client that was promised an object needs a moment to request it.
_SLACK_S = 60.0
_MIN_GRACE_S = 2 * REPORT_INTERVAL_S + _SLACK_S


def build_objects(config: ObjectsConfig, services: Services, published: Published) -> Objects:
    """Build what a process needs of a bucket, and have the store owe what it commits. After the fork."""
    store, metrics, node = services.store, services.metrics, services.node
    facts: ObjectFacts = LocalFacts(store.layout.index, store.threads.note) if node is None else node.objects
    bucket, uses = Bucket(bucket_address(config), metrics.objects_requests), UseReport(facts)
    writes = config.write == "owner"
    reader = ObjectReader(bucket, uses, metrics.bytes_from_objects.inc, published, may_delete=writes)
    if config.redirect.networks:
        networks = tuple(map(parse_network, config.redirect.networks))
        rules = RedirectRules(networks, config.redirect.min_size, config.redirect.url_ttl)
        reader.redirects = ObjectRedirects(bucket, facts, rules)
    inventory = BucketInventory(reader, TagReach(bucket, store))
    objects = Objects(reader, uses, inventory, _build_writer(config, services, bucket, facts) if writes else None)
    metrics.objects_owed.set_function(lambda: objects.owed)
    if node is not None:
        node.members.owed = lambda: objects.owed
    metrics.objects_bytes.set_function(lambda: objects.size)
    metrics.objects_limit_bytes.set(config.max_size)
    metrics.objects_up.set_function(lambda: bucket.is_up)
    return objects


async def probe_bucket(config: ObjectsConfig) -> Check:
    """Ask the bucket once, and return the check."""
    bucket = Bucket(bucket_address(config), Metrics().objects_requests)
    try:
        await bucket.check()
    except UpstreamError as error:
        return Check("objects", ok=False, text=str(error))
    try:
        async with contextlib.aclosing(bucket.pages(LAYOUT_KEY)) as pages:
            await anext(pages, None)
    except UpstreamError as error:
        if config.write == "owner":
            return Check("objects", ok=False, text=f"it cannot be listed, so max_size is not kept: {error}")
    return Check("objects", ok=True, text=f"{config.url} answers")


def bucket_address(config: ObjectsConfig) -> BucketAddress:
    """Return the address of the configured bucket."""
    parts = urlsplit(config.url or "")
    return BucketAddress(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=config.endpoint,
        region=config.region,
        access_key_file=config.access_key_file,
        ca_file=config.ca_file,
    )


def _build_writer(config: ObjectsConfig, services: Services, bucket: Bucket, facts: ObjectFacts) -> BucketWriter:
    store, metrics = services.store, services.metrics
    owed = OwedUploads(store.layout.index)

    def owe(digest: Digest) -> None:
        owed.add_blob(digest, TURN_S if facts.is_follower(digest) else 0.0)

    store.files.before_commit, store.files.on_purged, store.index.tags.on_news = owe, owed.add_purged, owed.add_tag
    # One process of a store uploads.
    rate = ByteRate(CountTable.private())
    rate.limit = config.max_rate
    uploader = Uploader(bucket, owed, store, rate, facts)
    uploader.min_size = config.min_size
    clients = services.group.counts.count(Total.CONNECTIONS)
    uploader.has_clients = lambda: clients.total > 0
    sweeper = Sweeper(
        bucket, store, facts, owed, SweepLimits(config.max_size, max(_MIN_GRACE_S, config.redirect.url_ttl + _SLACK_S))
    )
    uploader.written = sweeper.note_written

    def deleted(count: int, size: int) -> None:
        metrics.objects_deleted.inc(count)
        metrics.objects_deleted_bytes.inc(size)

    sweeper.deleted = deleted
    leader = None if services.node is None else services.node.sweep_leader
    if leader is not None:
        sweeper.leads = leader.leads
    return BucketWriter(uploader, sweeper, owed, store.layout.objects_lock, None if leader is None else leader.run)
