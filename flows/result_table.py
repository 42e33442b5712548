"""The result as a Markdown table, for Prefect's artifacts page."""

from __future__ import annotations

from pathlib import Path

from sparsekd.errors import SparseKDError
from sparsekd.report.summary import VARIANTS, read_summary
from sparsekd.report.table import Cell, comparison


def result_table(root: Path) -> str | None:
    """Dense, pruned and distilled side by side from `data/report/summary.json`, or None where it cannot be read."""
    try:
        summary = read_summary(root / "data/report/summary.json")
    except SparseKDError:
        return None
    lines = [f"## {summary.model.label}", "", "| | " + " | ".join(VARIANTS) + " |", "|---|" + "---:|" * len(VARIANTS)]
    for group in comparison(summary):
        lines.append(f"| **{group.title}** |" + " |" * len(VARIANTS))
        for row in group.rows:
            label = row.label + (f", {row.note}" if row.note else "")
            lines.append(f"| {label} | " + " | ".join(map(_cell, row.cells)) + " |")
    return "\n".join([*lines, "", summary.verdict or "", "", f"The page: `{root / 'data/report/index.html'}`"])


def _cell(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".strip()
