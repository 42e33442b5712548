"""The result as Markdown, for Prefect's artifacts page."""

from __future__ import annotations

from pathlib import Path

from sparsekd.errors import SparseKDError
from sparsekd.report.summary import VARIANTS, Gate, Summary, read_summary
from sparsekd.report.table import Cell, comparison


def result_table(root: Path) -> str | None:
    """Dense, pruned and distilled side by side from `data/report/summary.json`, or None where it cannot be read."""
    summary = _summary(root)
    if summary is None:
        return None
    lines = [f"## {summary.model.label}", "", "| | " + " | ".join(VARIANTS) + " |", "|---|" + "---:|" * len(VARIANTS)]
    for group in comparison(summary):
        lines.append(f"| **{group.title}** |" + " |" * len(VARIANTS))
        for row in group.rows:
            label = row.label + (f", {row.note}" if row.note else "")
            lines.append(f"| {label} | " + " | ".join(map(_cell, row.cells)) + " |")
    lines += ["", summary.verdict, "", summary.gate.sentence()]
    return "\n".join([*lines, "", f"The page: `{root / 'data/report/index.html'}`"])


def gate_of(root: Path) -> Gate | None:
    """What the gate said of the result under `root`, or None where there is none to be read."""
    summary = _summary(root)
    return summary.gate if summary else None


def _summary(root: Path) -> Summary | None:
    try:
        return read_summary(root / "data/report/summary.json")
    except SparseKDError:
        return None


def _cell(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".strip()
