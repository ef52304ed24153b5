"""Verdicts about manifests: reached once, stored, and reached anew where a signature may have been added since."""

from __future__ import annotations

from functools import partial

import structlog

from mirror.aio import SingleFlight, on_bytes
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.signature_reader import SignatureReader
from mirror.core.archives import HEAD_BYTES, is_document
from mirror.core.digest import Digest
from mirror.core.manifest import Manifest, ManifestKind, parse_manifest
from mirror.core.names import Repository
from mirror.errors import SignaturesUnavailable, UpstreamError, UpstreamRateLimited
from mirror.storage.verdicts import StoredVerdict
from mirror.throttled_log import ThrottledLog
from mirror.trust.judge import Judge, Subject
from mirror.trust.verdict import Result, Verdict

log = structlog.get_logger(__name__)


class SignatureChecks:
    """Reaches verdicts."""

    def __init__(self, context: Context, by_digest: ManifestByDigest, reader: SignatureReader) -> None:
        self._context = context
        self._by_digest = by_digest
        self._reader = reader
        self._log = ThrottledLog(log)
        # Not guarded: the requests of a check are.
        self._flights: SingleFlight[Verdict] = SingleFlight(context.in_use)

    def stored(self, judge: Judge, repository: Repository, digest: Digest) -> StoredVerdict | None:
        """The last verdict of a rule about a manifest; None if there is none, or if the rule has changed since."""
        return self._context.store.index.verdicts.get(repository, digest, judge.rule.fingerprint)

    def is_signed(self, judge: Judge, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest is known to be signed. Takes microseconds."""
        stored = self.stored(judge, repository, digest)
        return stored is not None and stored.result == Result.SIGNED

    async def check(self, judge: Judge, repository: Repository, digest: Digest) -> Verdict:
        """The verdict about a manifest.

        A good one is final. Another one is repeated for `not_found_ttl`, as upstream's refusals are, and while the signatures
        cannot be fetched.

        Raises:
            UpstreamRefusal: upstream does not have the manifest.
            SignaturesUnavailable: there is no verdict, and the signatures cannot be had for now.
        """
        stored, now = self.stored(judge, repository, digest), self._context.clock()
        if stored is not None:
            known = Verdict(Result(stored.result), stored.why)
            if known.is_signed or 0 <= now - stored.reached < self._context.policies.general.not_found_ttl:
                return known
        key = (repository, digest, judge.rule.fingerprint)
        try:
            verdict, _ = await self._flights.run(key, lambda: self._reach(judge, repository, digest))
        except UpstreamError as error:
            if stored is not None:
                return known
            if isinstance(error, UpstreamRateLimited):
                # Ends a run of the resync.
                raise
            raise SignaturesUnavailable.of(f"{repository}@{digest}", error) from error
        return verdict

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """A manifest, fetched if it is not held. Raises like `ManifestByDigest.get`."""
        answer = await self._by_digest.get(repository, digest, head=False)
        raw = answer.raw or b""
        return await on_bytes(len(raw), self._context.store.threads.serve, parse_manifest, raw, answer.media_type, digest)

    async def is_document(self, repository: Repository, digest: Digest) -> bool:
        """Whether a blob cannot be unpacked, whatever media type a manifest gives it. Raises like `SignatureReader.head`."""
        return is_document(await self._reader.head(repository, digest, HEAD_BYTES))

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._flights.close()
        await self._reader.close()

    async def _reach(self, judge: Judge, repository: Repository, digest: Digest) -> Verdict:
        context = self._context
        try:
            verdict = await self._judged(judge, repository, digest)
        except UpstreamError:
            context.metrics.trust_verdicts.labels(repository.registry, Result.UNAVAILABLE).inc()
            raise
        context.metrics.trust_verdicts.labels(repository.registry, verdict.result).inc()
        fields = {"repository": str(repository), "digest": str(digest), "rule": str(judge.rule.pattern)}
        level = "info" if verdict.is_signed else "warning"
        self._log.log(level, "trust_verdict", f"{repository} {verdict.result}", **fields, result=verdict.result, why=verdict.why)
        stored = StoredVerdict(verdict.result, verdict.why, context.clock())
        put = context.store.index.verdicts.put
        await context.note(partial(put, repository, digest, judge.rule.fingerprint, stored), late=None)
        return verdict

    async def _judged(self, judge: Judge, repository: Repository, digest: Digest) -> Verdict:
        manifest = await self.manifest(repository, digest)
        if manifest.kind is ManifestKind.SCHEMA1:
            return Verdict(Result.WRONG, "it is of schema 1, and nothing vouches for the bytes of those")
        found = await self._reader.read(repository, digest)
        verdict = await self._context.in_thread(judge.judge, Subject(repository, digest, manifest.raw), found.signatures)
        if found.error is not None and not verdict.is_signed:
            raise found.error
        return verdict
