"""Reports as a table for people and as JSON for scripts."""

from dataclasses import asdict
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.report import MIRROR, Bar, Report, Row

PASS = "PASS"
SHORT = "short"
NOT_TAKEN = "not taken"


def show(console: Console, report: Report) -> None:
    """Print one report: medians per server, the mirror's figures, the bars and the verdicts."""
    table = Table(title=report.title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("unit")
    for name in report.columns:
        table.add_column(name, justify="right")
    table.add_column("figure", justify="right")
    table.add_column("bar", no_wrap=True)
    table.add_column("verdict")
    for row in report.rows:
        table.add_row(*_cells(row, report.columns))
    console.print(table)
    for note in report.notes:
        console.print(f"  {note}", highlight=False, markup=False)
    for name, reason in report.absent.items():
        console.print(f"  {name}: {reason}", style="yellow", highlight=False, markup=False)
    console.print()


def as_json(report: Report) -> dict[str, object]:
    """Everything that was measured, every round of it, with figures and verdicts."""
    rows = []
    for row in report.rows:
        bars = [{**asdict(bar), "figure": bar.figure(row.rounds), "verdict": verdict(bar, row)} for bar in row.bars]
        medians = {name: median(values) for name, values in row.rounds.items()}
        rows.append({"what": row.what, "unit": row.unit, "rounds": row.rounds, "medians": medians, "bars": bars})
    return {"title": report.title, "rows": rows, "absent": report.absent, "notes": report.notes}


def _cells(row: Row, columns: tuple[str, ...]) -> list[str]:
    cells = [row.what, row.unit]
    for name in columns:
        values = row.rounds.get(name)
        cells.append(number(median(values)) if values else "-")
    figures = [bar.figure(row.rounds) for bar in row.bars]
    cells.append("\n".join("-" if figure is None else number(figure) for figure in figures))
    cells.append("\n".join(bar.text for bar in row.bars))
    cells.append("\n".join(styled(verdict(bar, row)) for bar in row.bars))
    return cells


def verdict(bar: Bar, row: Row) -> str:
    """Whether a bar is met, in a word."""
    figure = bar.figure(row.rounds)
    if figure is None:
        return NOT_TAKEN
    return PASS if bar.met(figure) else SHORT


def styled(result: str) -> str:
    """A verdict in its colour, as rich writes it."""
    style = {PASS: "green", SHORT: "red"}.get(result, "yellow")
    return f"[{style}]{result}[/]"


def number(value: float) -> str:
    """A figure with as many digits as mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 100 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def missing(report: Report) -> bool:
    """A figure that has a bar could not be taken."""
    return MIRROR in report.absent or any(verdict(bar, row) == NOT_TAKEN for row in report.rows for bar in row.bars)
