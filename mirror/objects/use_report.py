"""The uses of objects, reported in batches."""

from __future__ import annotations

import asyncio

from mirror.core.digest import Digest
from mirror.objects.facts import ObjectFacts

REPORT_INTERVAL_S = 300.0
# Of one batch; further ones are not reported.
_MAX_USES = 200_000


class UseReport:
    """Collects what clients of this process use. Any thread may note a use.

    Attributes:
        facts: receive the reports.
    """

    def __init__(self, facts: ObjectFacts) -> None:
        self.facts = facts
        self._noted: dict[Digest, float] = {}

    def note(self, digest: Digest, when: float) -> None:
        """Note that a blob or manifest was used, in seconds since the epoch."""
        if len(self._noted) < _MAX_USES:
            self._noted[digest] = when

    async def report(self) -> None:
        """Report what has been noted."""
        noted, self._noted = self._noted, {}
        if noted:
            await self.facts.note_uses(noted)

    async def run(self) -> None:
        """Report from time to time, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            await self.report()
