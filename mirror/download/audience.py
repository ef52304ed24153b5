"""Who reads a download, by how urgently they want it."""

from __future__ import annotations

from mirror.core.urgency import Urgency


class Audience:
    """The readers of one download."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Urgency, 0)
        # Without readers it is what its readers have left, or what nobody but the mirror itself has ever wanted.
        self._left = Urgency.SYNC

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def clients(self) -> int:
        """How many of them are clients."""
        return self._counts[Urgency.CLIENT]

    @property
    def urgency(self) -> Urgency:
        """How urgently its bytes are wanted just now."""
        return next((urgency for urgency, count in self._counts.items() if count), self._left)

    def join(self, urgency: Urgency) -> None:
        """One more reads it."""
        self._counts[urgency] += 1
        if urgency is not Urgency.SYNC:
            self._left = Urgency.ABANDONED

    def leave(self, urgency: Urgency) -> None:
        """One less."""
        self._counts[urgency] -= 1
