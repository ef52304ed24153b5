"""Reads the signatures of a manifest, through the same parts that answer clients: cached, shared, and stale in an outage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from mirror.aio import on_bytes, on_descriptor, together
from mirror.cache.blobs import Blobs
from mirror.cache.context import Context
from mirror.cache.listings import Listings
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.manifest_by_tag import ManifestByTag
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.links import next_query, parse_link_next
from mirror.core.names import Repository, Tag
from mirror.core.signatures import signature_tags
from mirror.core.staleness import DELETED
from mirror.download.reader import Body, Span
from mirror.errors import MirrorError, Offline, StorageError, UpstreamError, UpstreamRefusal, UpstreamTimeout
from mirror.storage.attachments import entries_in
from mirror.storage.rows import parse_digest
from mirror.trust.bundle import MEDIA_TYPE_PREFIX
from mirror.trust.claims import SIGNATURE_PREDICATE
from mirror.trust.judge import Signature
from mirror.trust.layers import MAX_PAYLOAD_BYTES, SignatureLayer, signature_layers
from mirror.trust.verdict import BundleSignature, SimpleSignature

T = TypeVar("T")

# The whole of it. Clients wait for 25 seconds at most.
_TIMEOUT_S: Final = 20.0
# Bundles of a manifest; more would be an attack, or a repository that is signed at each build for years.
_MAX_BUNDLES: Final = 50
_MAX_PAGES: Final = 10
_MAX_AT_ONCE: Final = 4
# All signatures of a manifest together. One has some kilobytes.
_MAX_BYTES: Final = 16 << 20
# Reasons of stale answers for which upstream need not be asked again.
_ANSWERED: Final = frozenset({Offline.reason, DELETED, "not_found", "denied"})
# sigstore/cosign, specs/BUNDLE_SPEC.md.
_PREDICATE_ANNOTATION: Final = "dev.sigstore.bundle.predicateType"


@dataclass(frozen=True, slots=True)
class FoundSignatures:
    """What could be read of the signatures of a manifest.

    Attributes:
        error: why there may be more; None if these are all.
    """

    signatures: tuple[Signature, ...]
    error: UpstreamError | None


class SignatureReader:
    """Reads signatures under the tag `sha256-<hex>.sig`, and the bundles that refer to a manifest.

    Args:
        by_tag: judges no signatures itself.
    """

    def __init__(
        self, context: Context, by_tag: ManifestByTag, by_digest: ManifestByDigest, blobs: Blobs, listings: Listings
    ) -> None:
        self._context = context
        self._by_tag = by_tag
        self._by_digest = by_digest
        self._blobs = blobs
        self._listings = listings

    async def read(self, repository: Repository, digest: Digest) -> FoundSignatures:
        """Read the signatures of a manifest, within `_TIMEOUT_S`."""
        found = _Found(repository)
        fallback, tag, *_ = signature_tags(digest) or (None, None)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await together([self._read_tag(found, tag), self._read_bundles(found, digest, fallback)])
        except TimeoutError:
            found.error = UpstreamTimeout(f"the signatures of {repository} {digest} did not arrive within {_TIMEOUT_S:g} s")
        return FoundSignatures(tuple(found.signatures), found.error)

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._by_tag.close()

    async def _read_tag(self, found: _Found, tag: Tag | None) -> None:
        """Read the signatures under the tag of a manifest."""
        raw = None if tag is None else await self._manifest_under(found, tag)
        if raw is not None:
            await self._read_layers(found, raw, bundles=False)

    async def _read_bundles(self, found: _Found, digest: Digest, fallback: Tag | None) -> None:
        """Read the bundles that refer to a manifest, those first that were imported: upstream need not have them."""
        imported = self._context.store.index.attachments.imported(found.repository, digest)
        entries = await self._listed(found, digest, fallback)
        if imported is not None:
            entries += await self._parsed(entries_in, imported.body or b"")
        bundles = [bundle for entry in reversed(entries) if (bundle := _bundle_in(entry)) is not None]
        waiting = iter(list(dict.fromkeys(bundles))[:_MAX_BUNDLES])

        async def work() -> None:
            for bundle in waiting:
                await self._read_bundle(found, bundle)

        await together(work() for _ in range(_MAX_AT_ONCE))

    async def _listed(self, found: _Found, digest: Digest, fallback: Tag | None) -> list[dict[str, Any]]:
        """The descriptors that the referrers API lists, or else the fallback tag."""
        try:
            return await self._referrers(found, digest)
        except (UpstreamRefusal, Offline) as error:
            # A registry without this API, or behind a proxy that refuses its path.
            found.note_recorded(error)
            raw = None if fallback is None else await self._manifest_under(found, fallback)
            return [] if raw is None else await self._parsed(entries_in, raw)
        except UpstreamError as error:
            found.error = error
            return []

    async def _read_bundle(self, found: _Found, digest: Digest) -> None:
        try:
            answer = await self._by_digest.get(found.repository, digest, head=False)
        except (UpstreamRefusal, Offline):
            return
        except UpstreamError as error:
            found.error = error
            return
        await self._read_layers(found, answer.raw or b"", bundles=True)

    async def _manifest_under(self, found: _Found, tag: Tag) -> bytes | None:
        """The manifest that a tag about another manifest names, or None."""
        try:
            answer, _ = await self._by_tag.get(found.repository, tag, head=False)
        except (UpstreamRefusal, Offline) as error:
            found.note_recorded(error)
            return None
        except UpstreamError as error:
            found.error = error
            return None
        found.note_stale(answer.reason)
        return answer.raw

    async def _referrers(self, found: _Found, digest: Digest) -> list[dict[str, Any]]:
        """The descriptors of the manifests that refer to a manifest, from several pages. Raises like `Listings.referrers`."""
        entries: list[dict[str, Any]] = []
        query: dict[str, str] = {}
        for _ in range(_MAX_PAGES):
            answer = await self._listings.referrers(found.repository, digest, "", query)
            found.note_stale(answer.reason)
            entries += await self._parsed(entries_in, answer.body)
            target = parse_link_next([answer.headers.get("Link", "")])
            if target is None:
                break
            query = next_query(target)
        return entries

    async def _read_layers(self, found: _Found, raw: bytes, *, bundles: bool) -> None:
        """Read the layers of a manifest of signatures; each content once."""
        try:
            found_layers = await self._parsed(signature_layers, raw)
        except InvalidInput:
            return
        layers = [layer for layer in found_layers if layer.is_bundle == bundles]
        if bundles:
            # A manifest has one bundle (sigstore/cosign, specs/BUNDLE_SPEC.md).
            layers = layers[-1:]
        waiting = iter({layer.digest: layer.size for layer in layers}.items())
        contents: dict[Digest, bytes] = {}

        async def work() -> None:
            for digest, size in waiting:
                contents[digest] = await self._content(found, digest, size)

        await together(work() for _ in range(_MAX_AT_ONCE))
        found.signatures += [_signature(layer, contents[layer.digest]) for layer in layers]

    async def _content(self, found: _Found, digest: Digest, size: int) -> bytes:
        """The bytes of a small blob; empty if there is none, or if it has another size than its manifest states."""
        try:
            if (await self._blobs.head(found.repository, digest))[0] != size:
                # Not fetched: it may be large.
                return b""
            answer = await self._blobs.get(found.repository, digest)
            try:
                if answer.size > min(MAX_PAYLOAD_BYTES, found.bytes_left):
                    return b""
                found.bytes_left -= answer.size
                return await _read(answer.body, answer.size)
            finally:
                await answer.body.close()
        except (UpstreamRefusal, Offline):
            return b""
        except UpstreamError as error:
            found.error = error
        except MirrorError as error:
            found.error = UpstreamError(f"a signature cannot be read: {error}")
        return b""

    async def head(self, repository: Repository, digest: Digest, count: int) -> bytes:
        """The first bytes of a blob, which is stored and verified before.

        Raises:
            UpstreamRefusal: upstream does not have it.
            UpstreamError: it cannot be had for now.
        """
        answer = await self._blobs.get(repository, digest)
        try:
            await answer.body.stored()
            return await _read(answer.body, min(count, answer.size))
        except StorageError as error:
            raise UpstreamError(f"{digest} cannot be stored, and is not served unseen: {error}") from error
        finally:
            await answer.body.close()

    async def _parsed(self, parse: Callable[[bytes], T], raw: bytes) -> T:
        return await on_bytes(len(raw), self._context.store.threads.serve, parse, raw)


@dataclass(slots=True)
class _Found:
    repository: Repository
    signatures: list[Signature] = field(default_factory=list)
    error: UpstreamError | None = None
    bytes_left: int = _MAX_BYTES

    def note_recorded(self, error: MirrorError) -> None:
        """Note an answer that upstream does not have something; in an outage it is only what upstream said last."""
        if isinstance(error.__cause__, UpstreamError) and not isinstance(error.__cause__, Offline):
            self.error = error.__cause__

    def note_stale(self, reason: str | None) -> None:
        """Note an answer; if upstream has failed for a reason it is only what upstream said last."""
        if reason is not None and reason not in _ANSWERED:
            self.error = UpstreamError(f"only what upstream said last of the signatures of {self.repository} is known ({reason})")
            self.error.reason = reason


async def _read(body: Body, size: int) -> bytes:
    data = bytearray()
    async for part in body.spans(0, size):
        if isinstance(part, Span):
            data += await on_descriptor(body.threads, part.file.fileno(), os.pread, part.count, part.start)
        else:
            data += part
    return bytes(data)


def _signature(layer: SignatureLayer, content: bytes) -> Signature:
    if layer.is_bundle:
        return BundleSignature(content)
    return SimpleSignature(content, layer.signature, layer.certificate, layer.log_entry)


def _bundle_in(entry: dict[str, Any]) -> Digest | None:
    """The manifest that a descriptor names, unless it says that there is no signature in it."""
    kind, annotations = entry.get("artifactType"), entry.get("annotations")
    if kind and not str(kind).startswith(MEDIA_TYPE_PREFIX):
        return None
    predicate = annotations.get(_PREDICATE_ANNOTATION) if isinstance(annotations, dict) else None
    return parse_digest(str(entry.get("digest"))) if predicate in (None, SIGNATURE_PREDICATE) else None
