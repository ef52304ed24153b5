"""What a measurement found, and how it compares with the bar that was set for it."""

from dataclasses import dataclass, field
from statistics import median

from bench.plot import Chart

MIRROR = "mirror"
NGINX = "nginx"
DOCKER_REGISTRY = "docker-registry"
# No server between the client and the upstream.
DIRECT = "direct"
SERVERS = (MIRROR, NGINX, DOCKER_REGISTRY)


@dataclass(frozen=True)
class Bar:
    """A limit for the value of a column, or for its ratio to the value of another one.

    Attributes:
        against: the other column.
        of: the column, the mirror's unless there are several of them.
    """

    limit: float
    at_least: bool
    text: str
    against: str = ""
    of: str = MIRROR

    def figure(self, rounds: dict[str, list[float]]) -> float | None:
        """The median of the figures of each round, so that noise that hits a whole round cancels out."""
        ours = rounds.get(self.of)
        if not self.against:
            return median(ours) if ours else None
        theirs = rounds.get(self.against)
        if not ours or not theirs or not all(theirs):
            return None
        return median(our / their for our, their in zip(ours, theirs, strict=False))

    def met(self, figure: float) -> bool:
        """The figure keeps to the limit."""
        return figure >= self.limit if self.at_least else figure <= self.limit


@dataclass
class Row:
    """One quantity: its value per server and round, and the bars it is held to."""

    what: str
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Note the value of one round."""
        self.rounds.setdefault(name, []).append(value)


@dataclass
class Report:
    """Rows of one measurement.

    Attributes:
        absent: why servers, or all of it under its own name, are missing from the rows.
        columns: of the table, in order.
        chart: what is worth a picture.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = SERVERS
    chart: Chart | None = None


def at_least(limit: float, against: str) -> Bar:
    """The mirror's value is at least `limit` times that of the server `against`."""
    return Bar(limit, True, f">= {limit:g} x {against}", against)


def at_most(limit: float, against: str) -> Bar:
    """The mirror's value is at most `limit` times that of the server `against`."""
    return Bar(limit, False, f"<= {limit:g} x {against}", against)
