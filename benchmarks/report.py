"""Writes what was measured: a table in Markdown, and the same as JSON."""

import json
import os
import platform
import sqlite3
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.timing import OURS, Comparison, Figure
from fiml import __version__

RESULTS = Path(__file__).parent / "results"


@dataclass
class Facts:
    """Figures other than the time of a call: bytes, rates, peaks; each with what it measures."""

    title: str
    columns: list[str]
    rows: list[list[str | float]] = field(default_factory=list)
    note: str = ""


@dataclass
class Report:
    """Everything that a run measured, in order."""

    machine: dict[str, str]
    comparisons: list[Comparison] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """`results.md` and `results.json` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.md").write_text(self.markdown(), encoding="utf-8")
        (folder / "results.json").write_text(f"{json.dumps(self.to_dict(), indent=1)}\n", encoding="utf-8")

    def markdown(self) -> str:
        lines = [
            "# Results",
            "",
            "Written by `make bench`. Milliseconds: the median, and the middle half of all calls.",
        ]
        lines += ["Ratios compare rounds of one run. `docs/explanation/performance.md` explains them.", ""]
        lines += _table(["measured with", ""], [[name, found] for name, found in self.machine.items()])
        if self.comparisons:
            header = ["operation", OURS, "beside", "ratio", "limit", "peers"]
            lines += ["## Operations", "", *_table(header, [_row(each) for each in self.comparisons])]
            notes = dict.fromkeys(f"{each.operation}: {each.note}." for each in self.comparisons if each.note)
            lines += [*(f"- {note}" for note in notes), ""]
        for each in self.facts:
            lines += [
                f"## {each.title}",
                "",
                *_table(each.columns, [[_cell(value) for value in row] for row in each.rows]),
            ]
            lines += [each.note, ""] if each.note else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "operations": [_as_dict(each) for each in self.comparisons],
            "facts": [{"title": each.title, "columns": each.columns, "rows": each.rows} for each in self.facts],
        }


def machine(*, valkey: str, postgres: str) -> dict[str, str]:
    """What the figures were measured with; nothing that tells whose machine it was."""
    packages = ("mcp", "msgspec", "redis", "hiredis", "asyncpg", "SQLAlchemy", "pydantic")
    found = {
        "fiml": __version__,
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "Valkey": valkey,
        "PostgreSQL": postgres,
        "SQLite": sqlite3.sqlite_version,
    }
    return found | {name: version(name) for name in packages} | peers.versions()


def line(comparison: Comparison) -> str:
    """A comparison on one line, for whoever watches the run."""
    cells = _row(comparison)
    return f"{cells[0]:<44} {cells[1]:<24} {cells[2]:<44} {cells[3]:>6} {cells[4]:<12} {cells[5]}"


def _row(comparison: Comparison) -> list[str]:
    figures = comparison.figures
    met = {True: "kept", False: "missed", None: ""}[comparison.is_met]
    peers_cell = "; ".join(
        f"{name} {figures[name].median:.2f} ({comparison.ratio(name):.2f})" for name in comparison.peers
    )
    return [
        comparison.operation,
        _spread(figures[OURS]),
        f"{comparison.baseline} {_spread(figures[comparison.baseline])}",
        f"{comparison.ratio():.2f}",
        "" if comparison.limit is None else f"{comparison.limit:.3g} {met}",
        peers_cell,
    ]


def _spread(figure: Figure) -> str:
    return f"{figure.median:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "operation": comparison.operation,
        "baseline": comparison.baseline,
        "limit": comparison.limit,
        "is_met": comparison.is_met,
        "note": comparison.note,
        "ways": {
            name: {
                "median_ms": round(figure.median, 4),
                "low_ms": round(figure.low, 4),
                "high_ms": round(figure.high, 4),
                "calls": sum(len(each) for each in comparison.rounds[name]),
                "ours_to_this": round(comparison.ratio(name), 3),
            }
            for name, figure in comparison.figures.items()
        },
    }
