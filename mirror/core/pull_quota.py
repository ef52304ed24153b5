"""Which requests the pull limit of a registry admits, by its responses so far. Their limit headers are optional.

Docker Hub counts GETs of manifests; HEADs are free (Docker documentation, Pull usage and limits). Its limit against abuse
answers 429 to requests of any kind.
"""

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mirror.core.breaker import Admission, Breaker

_MAX_DIGITS: Final = 15
_VALUE: Final = re.compile(rf"\s*(?P<value>[0-9]{{1,{_MAX_DIGITS}}})\s*(?P<parameters>[;,].*)?", re.ASCII | re.DOTALL)
_WINDOW: Final = re.compile(rf";\s*w\s*=\s*(?P<window>[0-9]{{1,{_MAX_DIGITS}}})\s*(?=[;,]|$)", re.ASCII)


class RateLimit(NamedTuple):
    """A number of pulls and the seconds it is for, None if they were not given."""

    value: int
    window: int | None


def parse_rate_limit(text: str | None) -> RateLimit | None:
    """Read `100;w=21600`; None if it is absent or makes no sense, for a limit is never worth a failed pull.

    Of several, separated by commas, the first counts.
    """
    match = _VALUE.fullmatch(text) if text is not None else None
    if match is None:
        return None
    window = _WINDOW.search((match["parameters"] or "").partition(",")[0])
    return RateLimit(int(match["value"]), int(window["window"]) if window else None)


# Pauses between probes after a 429 without Retry-After.
_FIRST_PAUSE_S: Final = 30.0
_MAX_PAUSE_S: Final = 900.0
# With no more pulls left than this, none is spent on a response that another request may bring as well.
_FEW_PULLS: Final = 20
# After a 429 pulls are saved for so long.
_NEAR_LIMIT_S: Final = 3600.0
# Stands for the gate of counted requests among those of kinds.
_COUNTED: Final = "pulls"
# The number of pulls left is valid for its window; without one, for Docker Hub's.
DEFAULT_WINDOW_S: Final = 21_600.0


@dataclass(frozen=True, slots=True)
class QuotaState:
    """What other mirrors with the same limit have to know.

    Attributes:
        remaining: pulls left; None if that is not known.
        window: seconds for which that counts.
        waits: by kind of request, and `pulls` for counted ones, the seconds until one may be sent.
    """

    remaining: int | None
    window: float
    waits: dict[str, float]


@dataclass(frozen=True, slots=True)
class QuotaPermit:
    """Permission for one request. It is given back with the outcome."""

    gates: tuple[tuple[Breaker, Admission], ...]


def _gate() -> Breaker:
    return Breaker(_FIRST_PAUSE_S, _MAX_PAUSE_S, threshold=1)


@dataclass(slots=True)
class PullQuota:
    """The pull limit of one registry for one account.

    After a 429 one request of that kind is admitted after each pause, as a probe. With no pulls left the same holds for GETs of
    manifests; HEADs are admitted, and show when there are some again.
    """

    _limited: dict[str, Breaker] = field(default_factory=dict)
    _pulls: Breaker = field(default_factory=_gate)
    _remaining: int | None = None
    _forgotten: float = 0.0
    _near_until: float = 0.0

    def remaining(self, now: float) -> int | None:
        """Pulls left, None if that is not known."""
        return self._remaining if now < self._forgotten else None

    def state(self, now: float) -> QuotaState:
        """What is known of the limit."""
        gates = {**self._limited, _COUNTED: self._pulls}
        waits = {kind: gate.wait(now) for kind, gate in gates.items()}
        return QuotaState(self.remaining(now), self._forgotten - now, {kind: wait for kind, wait in waits.items() if wait > 0})

    def learn(self, state: QuotaState, now: float) -> None:
        """Note what another mirror with the same limit knows. A request that is refused here already stays so."""
        for kind, wait in state.waits.items():
            gate = self._pulls if kind == _COUNTED else self._limited.setdefault(kind, _gate())
            self._near_until = now + _NEAR_LIMIT_S
            gate.failed(now, Admission.NORMAL, pause=wait)
        if state.remaining is not None and state.window > 0:
            self.note(RateLimit(state.remaining, max(1, round(state.window))), now)

    def spend(self, kind: str, method: str, now: float) -> QuotaPermit | float:
        """Admit a request, or return the seconds after which to try again."""
        taken: list[tuple[Breaker, Admission]] = []
        for gate in self._gates(kind, method):
            admission = gate.admit(now)
            if admission is None:
                self.released(QuotaPermit(tuple(taken)))
                return max(1.0, gate.wait(now))
            taken.append((gate, admission))
        return QuotaPermit(tuple(taken))

    def admits(self, kind: str, method: str, now: float) -> bool:
        """Whether `spend` would admit a request."""
        return all(gate.admits(now) for gate in self._gates(kind, method))

    def note(self, remaining: RateLimit, now: float) -> None:
        """Note the number of pulls left by a response."""
        self._remaining, self._forgotten = remaining.value, now + (remaining.window or DEFAULT_WINDOW_S)
        if remaining.value:
            self._pulls.succeeded()
        else:
            self._pulls.failed(now, Admission.NORMAL)

    def answered(self, permit: QuotaPermit, now: float) -> None:
        """Note a response other than 429, after its number of pulls left if it has one."""
        for gate, admission in permit.gates:
            if admission is not Admission.TRIAL:
                continue
            if gate is self._pulls and self.remaining(now) == 0:
                gate.failed(now, admission)
            else:
                gate.succeeded()

    def refused(self, permit: QuotaPermit, kind: str, retry_after: float | None, now: float) -> float:
        """Note a 429, with its Retry-After in seconds; returns the seconds until the next probe."""
        gates = [self._limited.setdefault(kind, _gate())]
        if any(gate is self._pulls for gate, _ in permit.gates):
            # A HEAD that is answered meanwhile shows nothing about pulls.
            gates.append(self._pulls)
        self._near_until = now + _NEAR_LIMIT_S
        for gate in gates:
            gate.failed(now, self._admission(permit, gate) or Admission.NORMAL, pause=retry_after)
        return gates[0].wait(now)

    def released(self, permit: QuotaPermit) -> None:
        """Note that a request had no outcome."""
        for gate, admission in permit.gates:
            gate.released(admission)

    def allows_background(self, reserve: int, now: float) -> bool:
        """Whether background work is admitted: nothing is limited, and more than `reserve` pulls are left.

        After a pause it may be the probe: at night there is no client.
        """
        if not all(gate.admits(now) for gate in (self._pulls, *self._limited.values())):
            return False
        remaining = self.remaining(now)
        return remaining is None or remaining > reserve

    def has_plenty(self, reserve: int, now: float) -> bool:
        """Whether a pull may be spent where a HEAD might save it: no 429 was near, and far more than `reserve` pulls are left."""
        if now < self._near_until or not self._pulls.is_closed:
            return False
        remaining = self.remaining(now)
        return remaining is None or remaining > 2 * reserve + _FEW_PULLS

    def allows_second(self, kind: str, method: str, now: float) -> bool:
        """Whether a request may be sent a second time, although the first one may count as a pull."""
        gates = self._gates(kind, method)
        remaining = self.remaining(now) if self._pulls in gates else None
        return all(gate.is_closed for gate in gates) and (remaining is None or remaining > _FEW_PULLS)

    def _gates(self, kind: str, method: str) -> list[Breaker]:
        gates = [self._limited[kind]] if kind in self._limited else []
        return [*gates, self._pulls] if (kind, method) == ("manifest", "GET") else gates

    @staticmethod
    def _admission(permit: QuotaPermit, gate: Breaker) -> Admission | None:
        return next((admission for own, admission in permit.gates if own is gate), None)
