"""The versions in tags, and ranges of versions as people write them."""

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Final, TypeAlias

from mirror.core.errors import InvalidVersionRange

Numbers: TypeAlias = tuple[int, ...]

# Longer runs of digits are hashes, not version numbers.
_NUMBERS: Final = r"[0-9]{1,18}(?:\.[0-9]{1,18})*"
_SUFFIX: Final = r"(?:[-_]|\.?[a-z])[a-z0-9._-]{0,127}"
_VERSION: Final = re.compile(rf"v?(?P<numbers>{_NUMBERS})(?P<suffix>{_SUFFIX})?", re.ASCII | re.IGNORECASE)
_COMPARATOR: Final = re.compile(
    rf"(?P<operator>>=|<=|[><=~^])?v?(?P<numbers>{_NUMBERS})(?P<wildcard>(?:\.[x*])+)?", re.ASCII | re.IGNORECASE
)
_OPERATOR_AND_BLANKS: Final = re.compile(r"(>=|<=|[><=~^])\s+")
_RUNS: Final = re.compile(r"[0-9]+|[^0-9]+", re.ASCII)
_MAX_TEXT: Final = 256
_LOWEST: Final[Numbers] = (0,)
_HELP: Final = "expected comparators such as >=1.25 <2, ~1.25, ^1.2, 1.27 or 1.x"


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """The version of a tag such as `v1.27.0-alpine`; a leading v is ignored.

    Ordered by number after number, where a missing one is below all others (1.27 < 1.27.0); then those with a suffix
    come before the plain one (1.27-rc1 < 1.27), in the order of their letters and numbers (rc2 < rc10).

    Attributes:
        suffix: everything after the numbers, with what separates it from them; "" for a plain version.
    """

    numbers: Numbers
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> "Version | None":
        """The version that a tag names; None if it names none, as `latest` does not."""
        match = _VERSION.fullmatch(text)
        return None if match is None else cls(_numbers(match["numbers"]), match["suffix"] or "")

    @property
    def is_plain(self) -> bool:
        """Whether there is no suffix: neither a prerelease nor a variant."""
        return not self.suffix

    def __lt__(self, other: "Version") -> bool:
        return self._key() < other._key()

    def __str__(self) -> str:
        return _dotted(self.numbers) + self.suffix

    def _key(self) -> tuple[Numbers, bool, list[tuple[int, str]], str]:
        runs = [(int(run), "") if run.isdigit() else (-1, run) for run in _RUNS.findall(self.suffix)]
        # The suffix as it stands comes last: 01 and 1 count the same, but versions are equal only if they are.
        return self.numbers, self.is_plain, runs, self.suffix


@dataclass(frozen=True, slots=True)
class VersionRange:
    """The versions from `low` up to, but without, `high`; None is no upper end. Suffixes do not count.

    A bound stands for all that begin with it: `1.2` and `<=1.2` cover 1.2.7, `>1.2` does not. Make one with `parse`.
    """

    low: Numbers
    high: Numbers | None

    @classmethod
    def parse(cls, text: str) -> "VersionRange":
        """Read comparators that all apply, separated by blanks or commas.

        `>=1.25`, `>1`, `<=3.1`, `<2`, `=1.2` or `1.2` or `1.2.x` (all that begin with it), `~1.25` (>=1.25 <1.26), `^1.2`
        (>=1.2 <2; the first number that is not 0 stays), `*` (all). Raises InvalidVersionRange.
        """
        if len(text) > _MAX_TEXT:
            raise InvalidVersionRange(text, f"longer than {_MAX_TEXT} characters")
        comparators = _OPERATOR_AND_BLANKS.sub(r"\1", text.replace(",", " ")).split()
        if not comparators:
            raise InvalidVersionRange(text, _HELP)
        low = _LOWEST
        high: Numbers | None = None
        for comparator in comparators:
            least, end = _bounds(comparator, text)
            low = max(low, least)
            high = end if high is None else high if end is None else min(high, end)
        if high is not None and low >= high:
            raise InvalidVersionRange(text, "no version can be in it")
        return cls(low, high)

    def contains(self, version: Version) -> bool:
        """Whether a version lies in the range, by its numbers alone."""
        return self.low <= version.numbers and (self.high is None or version.numbers < self.high)

    def __str__(self) -> str:
        ends = [f">={_dotted(self.low)}"] if self.low > _LOWEST else []
        return " ".join(ends + ([f"<{_dotted(self.high)}"] if self.high is not None else [])) or "*"


def _bounds(comparator: str, text: str) -> tuple[Numbers, Numbers | None]:
    """The half-open interval of one comparator."""
    if comparator in ("*", "x", "X"):
        return _LOWEST, None
    match = _COMPARATOR.fullmatch(comparator)
    if match is None or (match["wildcard"] and match["operator"] not in (None, "=")):
        raise InvalidVersionRange(text, _HELP)
    numbers = _numbers(match["numbers"])
    match match["operator"]:
        case ">=":
            return numbers, None
        case ">":
            return _after(numbers), None
        case "<":
            return _LOWEST, numbers
        case "<=":
            return _LOWEST, _after(numbers)
        case "~":
            return numbers, _after(numbers[:2])
        case "^":
            return numbers, _after(numbers[: _first_that_counts(numbers) + 1])
        case _:
            return numbers, _after(numbers)


def _after(numbers: Numbers) -> Numbers:
    """The least numbers above all that begin with these."""
    return (*numbers[:-1], numbers[-1] + 1)


def _first_that_counts(numbers: Numbers) -> int:
    return next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)


def _numbers(text: str) -> Numbers:
    return tuple(map(int, text.split(".")))


def _dotted(numbers: Numbers) -> str:
    return ".".join(map(str, numbers))
