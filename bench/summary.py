"""What came of the bars of all measurements, for the terminal and as Markdown."""

from collections.abc import Iterator, Mapping
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.report import Report
from bench.table import number, styled, verdict


def show_verdicts(console: Console, reports: Mapping[str, Report]) -> None:
    """Print one line per bar."""
    table = Table(title="All bars", title_justify="left", title_style="bold")
    for name in ("", "figure", "bar", "verdict"):
        table.add_column(name, justify="right" if name == "figure" else "left")
    for what, figure, bar, result in _verdicts(reports):
        table.add_row(what, figure, bar, styled(result))
    console.print(table)


def as_markdown(reports: Mapping[str, Report], command: str) -> str:
    """A table with the verdict of each bar, and one with all figures of each measurement."""
    parts = [f"Measured by `{command}`.", _table(["", "figure", "bar", "verdict"], _verdicts(reports))]
    for report in reports.values():
        rows = (
            [row.what, row.unit, *(number(median(row.rounds[name])) if name in row.rounds else "" for name in report.columns)]
            for row in report.rows
        )
        parts += [f"### {report.title}", _table(["", "unit", *report.columns], rows)]
        parts += ["\n".join(f"- {note}" for note in [*report.notes, *_reasons(report)])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(reports: Mapping[str, Report]) -> Iterator[list[str]]:
    for name, report in reports.items():
        for row in report.rows:
            for bar in row.bars:
                figure = bar.figure(row.rounds)
                yield [f"{name}: {row.what}", "-" if figure is None else number(figure), bar.text, verdict(bar, row)]


def _reasons(report: Report) -> list[str]:
    return [f"{name}: {reason}" for name, reason in report.absent.items()]


def _table(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
