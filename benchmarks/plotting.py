"""Which plots are drawn of a report."""

import re
from pathlib import Path

from benchmarks.plots import Line, draw
from benchmarks.report import Facts, Report

BY_HISTORY = {"track": "track, history ", "read": "read whole, history ", "recent": "header and last 5, history "}


def plot(report: Report, folder: Path) -> None:
    """Write the plots for which the report has at least two points."""
    for name, operation in BY_HISTORY.items():
        _draw_operation(report, folder / f"{name}.svg", operation, "queries in the history")
    _draw_operation(report, folder / "page.svg", "list a page among ", "sessions of the user")
    for facts in report.facts:
        _draw_facts(facts, folder)


def _draw_operation(report: Report, path: Path, operation: str, x_name: str) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for comparison in report.comparisons:
        if comparison.operation.startswith(operation):
            x = float(re.sub(r"\D", "", comparison.operation.removeprefix(operation)))
            for way, figure in comparison.figures.items():
                points.setdefault(way, []).append((x, figure.median))
    _draw_lines(
        path, f"{operation.rstrip().removesuffix('history').rstrip(', ')}, median", x_name, "milliseconds", points
    )


def _draw_facts(facts: Facts, folder: Path) -> None:
    """Columns of times against the first column; and in a plot of their own those of rates."""
    for suffix, unit in (("ms", "milliseconds"), ("a second", "a second")):
        points = {
            name: [(float(row[0]), float(row[place])) for row in facts.rows]
            for place, name in enumerate(facts.columns)
            if place > 0 and name.endswith(suffix)
        }
        name = f"{facts.columns[0].replace(' ', '-')}-{'ms' if suffix == 'ms' else 'rate'}.svg"
        _draw_lines(folder / name, facts.title, facts.columns[0], unit, points)


def _draw_lines(path: Path, title: str, x_name: str, y_name: str, points: dict[str, list[tuple[float, float]]]) -> None:
    lines = [Line(name, sorted(some)) for name, some in points.items() if len(some) > 1]
    if lines:
        draw(path, title, x_name, y_name, lines)
