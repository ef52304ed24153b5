"""What may be served of what upstream has: cool-downs of new digests, and signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.cache.new_digests import NewDigests
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository

if TYPE_CHECKING:
    # Imported only where there is a rule of `trust`.
    from mirror.cache.trust_gate import TrustGate


@dataclass(frozen=True, slots=True)
class ManifestGates:
    """The gates that a manifest passes on its way to a client.

    Attributes:
        trust: None without a rule of `trust`.
    """

    new_digests: NewDigests
    trust: TrustGate | None

    async def before_fetch(self, repository: Repository, digest: Digest) -> None:
        """Return if a digest may be looked up. Raises like `NewDigests.check`."""
        await self.new_digests.check(repository, digest)

    async def before_answer(self, repository: Repository, reference: Reference, digest: Digest) -> None:
        """Return if a manifest may be served. Raises like `TrustGate.require_manifest`."""
        if self.trust is not None:
            await self.trust.require_manifest(repository, reference, digest)
