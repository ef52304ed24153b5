"""Which fault happens to which request."""

from dataclasses import dataclass

from .answer import Answer
from .faults import Fault, Gate
from .ledger import Host, Seen


@dataclass
class Rule:
    """Matches requests that agree with everything named.

    `kind` is a request's kind, or `cdn` for everything the CDN is asked. `range` is the exact Range header,
    or True or False for any or none. The first `skip` matches are left alone, the next `times` (None: all)
    are hit. Answers that only ask for a token are left alone unless `challenge`.
    """

    kind: str | None = None
    method: str | None = None
    repository: str | None = None
    reference: str | None = None
    host: Host | None = None
    range: str | bool | None = None
    times: int | None = 1
    skip: int = 0
    challenge: bool = False

    def matches(self, seen: Seen) -> bool:
        named = {
            "method": self.method,
            "repository": self.repository,
            "reference": self.reference,
            "host": self.host,
        }
        if self.kind is not None and self.kind not in (seen.kind, seen.host):
            return False
        if isinstance(self.range, bool) and (seen.range is not None) != self.range:
            return False
        if isinstance(self.range, str) and seen.range != self.range:
            return False
        return seen.fits(named)


class Entry:
    """Faults that happen together to what one rule matches; `used` counts how often."""

    def __init__(self, rule: Rule, faults: tuple[Fault, ...]) -> None:
        self.rule = rule
        self.faults = faults
        self.used = 0
        self.active = True
        self._skip = rule.skip

    @property
    def is_gate(self) -> bool:
        return all(isinstance(fault, Gate) for fault in self.faults)

    def remove(self) -> None:
        """It happens no more; what is under way goes on."""
        self.active = False

    def take(self, seen: Seen, answer: Answer) -> bool:
        if not self.active or not self.rule.matches(seen):
            return False
        if not (self._fits(seen, answer) or (self.rule.challenge and answer.challenge)):
            return False
        if self._skip:
            self._skip -= 1
            return False
        self.used += 1
        self.active = self.rule.times is None or self.used < self.rule.times
        return True

    def _fits(self, seen: Seen, answer: Answer) -> bool:
        for fault in self.faults:
            if not fault.fits(seen, answer):
                return False
            answer = fault.change(seen, answer)
        return True


class Script:
    """The rules in the order in which they were given.

    The first rule that matches happens, so that several one-time rules happen one after the other. Gates and
    stalls happen in addition, all that match.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, rule: Rule, *faults: Fault) -> Entry:
        entry = Entry(rule, faults)
        self.entries.append(entry)
        return entry

    def clear(self) -> None:
        self.entries.clear()

    def take(self, seen: Seen, answer: Answer) -> list[Fault]:
        """The faults that happen to this request; the rules that match are spent."""
        faults: list[Fault] = []
        hit = False
        for entry in self.entries:
            if (entry.is_gate or not hit) and entry.take(seen, answer):
                hit = hit or not entry.is_gate
                faults.extend(entry.faults)
        return faults
