"""The gate for content of repositories with a rule of `trust`: only what is signed passes.

A manifest passes if it is signed, or if an index that passes names it; a blob passes if a manifest that passes names it.
Signatures, attestations and SBOMs pass, so that clients can verify them, too; they let nothing else pass but their own blobs.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog

from mirror.cache.context import Context
from mirror.cache.generation_cache import GenerationCache
from mirror.cache.signature_checks import SignatureChecks
from mirror.core.digest import Digest
from mirror.core.manifest import ManifestKind
from mirror.core.names import Reference, Repository, Tag
from mirror.core.signatures import is_attachment, subject_of
from mirror.errors import MirrorError, SignaturesUnavailable, StorageError, Untrusted, UpstreamError, UpstreamRefusal
from mirror.storage.index import ReadCheck
from mirror.storage.manifests import ManifestRecord
from mirror.storage.parts import MAX_PARTS, parts_of
from mirror.storage.rows import Kind
from mirror.storage.verdicts import StoredVerdict
from mirror.throttled_log import ThrottledLog
from mirror.trust.judge import Judge, Judges
from mirror.trust.verdict import Result, Verdict

log = structlog.get_logger(__name__)

_MAX_ENTRIES: Final = 50_000
# The approximate memory of an entry.
_ENTRY_BYTES: Final = 300
# Indexes nest two deep in practice.
_MAX_DEPTH: Final = 4
# Manifests that lead to a digest: of so many the verdict is looked up, and of so many it is reached.
_MAX_LOOKUPS: Final = 1000
_MAX_CHECKS: Final = 20
# Rows that say what a manifest names. They are usually written within a millisecond.
_WRITE_TIMEOUT_S: Final = 10.0
# Checks for `mode: warn`, which delay no client.
_MAX_BACKGROUND: Final = 100


@dataclass(frozen=True, slots=True)
class TrustFacts:
    """What is known of the signatures of a manifest.

    Attributes:
        rule: the rule that applies, in words.
        verdict: the last one; None if there is none.
    """

    rule: str
    enforced: bool
    verdict: StoredVerdict | None

    @property
    def refusal(self) -> str | None:
        """Why the manifest is refused, as far as is known; None if it is not."""
        if not self.enforced or self.verdict is None or self.verdict.result == Result.SIGNED:
            return None
        return f"{self.rule}: {self.verdict.result}: {self.verdict.why}"


class TrustGate:
    """Lets content pass, or raises."""

    def __init__(self, context: Context, judges: Judges, checks: SignatureChecks) -> None:
        self._context = context
        self._judges = judges
        self._checks = checks
        # What has passed. A verdict stays until the rule changes, for which there is another gate.
        self._passed: GenerationCache[bool] = GenerationCache(context.store.generation, _MAX_ENTRIES)
        self._background: set[asyncio.Task[None]] = set()
        self._log = ThrottledLog(log)

    def has_passed(self, kind: Kind, repository: Repository, digest: Digest) -> bool:
        """Whether content is known to pass. Takes a microsecond."""
        return self._passed.get((kind, repository, digest), self._context.clock()) is not None

    async def require_manifest(self, repository: Repository, reference: Reference, digest: Digest) -> None:
        """Return if a manifest may be served.

        Args:
            reference: by which it is asked for.
            digest: what that names.

        Raises:
            Untrusted: it is not signed.
            UpstreamError: nobody knows for now.
        """
        if self.has_passed("manifest", repository, digest):
            return
        generation, judge, reads = self._passed.generation(), self._judges.find(repository), ReadCheck(self._context.store.index)
        if judge is None:
            self._pass("manifest", repository, digest, generation)
        elif not judge.rule.enforced:
            self._warn(judge, repository, reference, digest)
        elif not await self._is_attachment(repository, reference, digest):
            verdict = await self._verdict(judge, repository, digest)
            if not verdict.is_signed:
                _refuse(judge, f"{repository}@{digest}", str(verdict), reads)
            await self._require_parts(repository, digest)
            self._pass("manifest", repository, digest, generation)
        else:
            await self._require_parts(repository, digest)

    async def require_blob(self, repository: Repository, digest: Digest) -> None:
        """Return if a blob may be served. Raises like `require_manifest`."""
        if self.has_passed("blob", repository, digest):
            return
        generation, judge, reads = self._passed.generation(), self._judges.find(repository), ReadCheck(self._context.store.index)
        if judge is not None and judge.rule.enforced and not await self._is_named(judge, repository, digest):
            _refuse(judge, f"{repository}@{digest}", "no manifest that may be served names this blob", reads)
        self._pass("blob", repository, digest, generation)

    async def follows(self, repository: Repository, tag: Tag, old: Digest, new: Digest) -> bool:
        """Whether a tag that has moved upstream may follow: it keeps what is signed rather than name what is not.

        Raises:
            UpstreamError: nobody knows for now.
        """
        judge = self._judges.find(repository)
        if judge is None or not judge.rule.enforced or subject_of(tag) is not None:
            return True
        try:
            is_signed = (await self._verdict(judge, repository, new)).is_signed
            return is_signed or not (await self._verdict(judge, repository, old)).is_signed
        except UpstreamRefusal:
            # One of them is refused to clients as well, so there is nothing to choose.
            return True

    def facts(self, repository: Repository, digest: Digest | None) -> TrustFacts | None:
        """What is known of a manifest; None without a rule. Asks nobody. May be called in any thread."""
        judge = self._judges.find(repository)
        if judge is None:
            return None
        verdict = None if digest is None else self._checks.stored(judge, repository, digest)
        if digest is not None and (verdict is None or verdict.result != Result.SIGNED):
            verdict = self._inherited(judge, repository, digest) or verdict
        return TrustFacts(str(judge.rule), judge.rule.enforced, verdict)

    async def close(self) -> None:
        """Cancel the checks."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._checks.close()

    # ---- manifests

    async def _verdict(self, judge: Judge, repository: Repository, digest: Digest) -> Verdict:
        """The verdict about a manifest, by itself or by an index that leads to it; known ones first."""
        if await self._context.in_thread(self._is_known_signed, judge, repository, digest):
            return Verdict(Result.SIGNED, "known")
        own = await self._checks.check(judge, repository, digest)
        if own.is_signed:
            return own
        return await self._first_signed(judge, repository, await self._leading_to("manifest", repository, digest)) or own

    async def _first_signed(self, judge: Judge, repository: Repository, manifests: list[Digest]) -> Verdict | None:
        """The verdict about the first manifest that is signed by itself, of `_MAX_CHECKS`; None if none is."""
        unknown: UpstreamError | None = None
        for manifest in manifests[:_MAX_CHECKS]:
            try:
                verdict = await self._checks.check(judge, repository, manifest)
            except UpstreamError as error:
                unknown = error
            except UpstreamRefusal:
                continue
            else:
                if verdict.is_signed:
                    return verdict
        if unknown is not None:
            raise unknown
        return None

    def _is_known_signed(self, judge: Judge, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest, or an index that leads to it, is known to be signed. Reads the index."""
        return self._checks.is_signed(judge, repository, digest) or self._leads_from_signed(judge, "manifest", repository, digest)

    def _leads_from_signed(self, judge: Judge, kind: Kind, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest that leads to content is known to be signed. Reads the index."""
        return any(self._checks.is_signed(judge, repository, manifest) for manifest in self._recorded(kind, repository, digest))

    def _inherited(self, judge: Judge, repository: Repository, digest: Digest) -> StoredVerdict | None:
        """The verdict about an index that is signed and leads to a manifest, or None."""
        for parent in self._recorded("manifest", repository, digest):
            found = self._checks.stored(judge, repository, parent)
            if found is not None and found.result == Result.SIGNED:
                return StoredVerdict(found.result, f"the index {parent} names it, which is signed {found.why}", found.reached)
        return None

    def _recorded(self, kind: Kind, repository: Repository, digest: Digest) -> list[Digest]:
        """The manifests of a repository that lead to a digest, the nearest ones first. Reads the index."""
        leading_to = self._context.store.index.parts.leading_to
        return leading_to(kind, repository, digest, _MAX_LOOKUPS, _MAX_DEPTH if kind == "blob" else _MAX_DEPTH - 1)

    async def _leading_to(self, kind: Kind, repository: Repository, digest: Digest) -> list[Digest]:
        """The same, once what this process may have fetched a moment ago is recorded."""
        found = await self._context.in_thread(self._recorded, kind, repository, digest)
        if not found:
            await self._wait_written(repository)
            found = await self._context.in_thread(self._recorded, kind, repository, digest)
        return found

    async def _is_attachment(self, repository: Repository, reference: Reference, digest: Digest) -> bool:
        """Whether a manifest holds only signatures and the like, or lists them under the tag for that."""
        if isinstance(reference, Tag) and subject_of(reference) is None:
            return False
        parsed = await self._checks.manifest(repository, digest)
        if parsed.kind is not ManifestKind.INDEX:
            return is_attachment(parsed)
        tags = [reference] if isinstance(reference, Tag) else self._context.store.index.tags.naming(repository, digest)
        return any(subject_of(tag) is not None for tag in tags)

    # ---- blobs

    async def _is_named(self, judge: Judge, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest that may be served names a blob; known ones first."""
        leading = await self._leading_to("blob", repository, digest)
        if await self._context.in_thread(self._leads_from_signed, judge, "blob", repository, digest):
            return True
        # Not those farther away: a list of referrers may name an image.
        direct = await self._context.in_thread(self._context.store.index.parts.naming, "blob", repository, digest)
        for parent in direct[:_MAX_CHECKS]:
            if await self._is_attachment(repository, parent, parent):
                # Docker unpacks layers whatever their media type is.
                return await self._checks.is_document(repository, digest)
        return await self._first_signed(judge, repository, leading) is not None

    # ---- what has passed

    def _pass(self, kind: Kind, repository: Repository, digest: Digest, generation: bytes, expires: float = math.inf) -> None:
        self._passed.put((kind, repository, digest), True, _ENTRY_BYTES, expires, generation)

    async def _require_parts(self, repository: Repository, digest: Digest) -> None:
        """Return once every process can look up what a manifest names, or the blobs of it would be refused from then on."""
        access, has = self._context.access, self._context.store.index.parts.has
        await self._wait_written(repository)
        if await self._context.in_thread(has, repository, digest):
            return
        # It could not be written when the manifest was fetched.
        manifest = await self._checks.manifest(repository, digest)
        held, parts = ManifestRecord(manifest.media_type, len(manifest.raw)), parts_of(manifest)
        if len(parts) > MAX_PARTS:
            return
        access.record_manifest(repository, digest, held, parts, force=True)
        await self._wait_written(repository)
        if not await self._context.in_thread(has, repository, digest):
            raise SignaturesUnavailable(f"what {repository}@{digest} names cannot be written down for now")

    async def _wait_written(self, repository: Repository) -> None:
        """Wait until what this process has recorded is written, or has failed to be."""
        if not await self._context.access.wait_written(_WRITE_TIMEOUT_S):
            raise SignaturesUnavailable(f"what the manifests of {repository} name cannot be written down for now")

    # ---- mode: warn

    def _warn(self, judge: Judge, repository: Repository, reference: Reference, digest: Digest) -> None:
        """Check a manifest that is served in any case, beside the client."""
        expires = self._context.clock() + self._context.policies.general.not_found_ttl
        self._pass("manifest", repository, digest, self._passed.generation(), expires)
        if isinstance(reference, Tag) and subject_of(reference) is not None:
            return
        if len(self._background) < _MAX_BACKGROUND:
            task = asyncio.create_task(self._check_beside(judge, repository, reference, digest))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _check_beside(self, judge: Judge, repository: Repository, reference: Reference, digest: Digest) -> None:
        try:
            if await self._is_attachment(repository, reference, digest):
                return
            verdict = await self._verdict(judge, repository, digest)
        except MirrorError as error:
            verdict = Verdict(Result.UNAVAILABLE, str(error))
        if not verdict.is_signed:
            fields = {"repository": str(repository), "reference": str(reference), "digest": str(digest)}
            self._log.log("warning", "untrusted_served", str(repository), **fields, rule=str(judge.rule), verdict=str(verdict))


def _refuse(judge: Judge, what: str, why: str, reads: ReadCheck) -> NoReturn:
    try:
        reads.check()
    except StorageError as error:
        raise SignaturesUnavailable(f"nobody knows whether {what} is signed: {error}") from error
    raise Untrusted(f"{what} may not be pulled through this mirror", f"{judge.rule}: {why}")
