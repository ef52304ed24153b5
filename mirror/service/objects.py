"""Builds the client of a bucket behind the store. Imported only if one is configured."""

from __future__ import annotations

from urllib.parse import urlsplit

from mirror.config.objects import ObjectsConfig
from mirror.core.byte_rate import ByteRate
from mirror.core.checks import Check
from mirror.core.counts import CountTable
from mirror.errors import UpstreamError
from mirror.metrics import Metrics
from mirror.objects.address import BucketAddress
from mirror.objects.bucket import Bucket
from mirror.objects.objects import Objects
from mirror.objects.owed import OwedUploads
from mirror.objects.reader import ObjectReader, Published
from mirror.objects.uploader import Uploader
from mirror.storage.store import Store


def build_objects(config: ObjectsConfig, store: Store, metrics: Metrics, published: Published) -> Objects:
    """Build what a process needs of a bucket, and have the store owe what it commits. After the fork."""
    bucket = Bucket(bucket_address(config), metrics.objects_requests)
    writes = config.write == "owner"
    reader = ObjectReader(bucket, metrics.bytes_from_objects.inc, published, may_delete=writes)
    owed = OwedUploads(store.layout.index) if writes else None
    if owed is not None:
        store.files.before_commit, store.index.tags.on_news = owed.add_blob, owed.add_tag
    objects = Objects(bucket, reader, None if owed is None else _build_uploader(config, store, owed, reader))
    metrics.objects_owed.set_function(lambda: objects.owed)
    metrics.objects_up.set_function(lambda: bucket.is_up)
    return objects


async def probe_bucket(config: ObjectsConfig) -> Check:
    """Ask the bucket once, and return the check."""
    try:
        await Bucket(bucket_address(config), Metrics().objects_requests).check()
    except UpstreamError as error:
        return Check("objects", ok=False, text=str(error))
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


def _build_uploader(config: ObjectsConfig, store: Store, owed: OwedUploads, reader: ObjectReader) -> Uploader:
    # One process of a store uploads.
    rate = ByteRate(CountTable.private())
    rate.limit = config.max_rate
    uploader = Uploader(reader.bucket, owed, store, rate, reader.has_sent)
    uploader.min_size = config.min_size
    return uploader
