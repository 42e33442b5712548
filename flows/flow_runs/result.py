"""The result as Markdown, for Prefect's artifacts page."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from sparsekd.errors import SparseKDError
from sparsekd.report.summary import VARIANTS, Gate, Summary, read_summary
from sparsekd.report.table import Cell, comparison


def result_page(root: Path, links: list[str]) -> str | None:
    """Table, trade-off picture and verdict from `data/report/summary.json`, with `links` below; None without one."""
    summary = _summary(root)
    if summary is None:
        return None
    lines = [f"## {summary.model.label}", "", "| | " + " | ".join(VARIANTS) + " |", "|---|" + "---:|" * len(VARIANTS)]
    for group in comparison(summary):
        lines.append(f"| **{group.title}** |" + " |" * len(VARIANTS))
        for row in group.rows:
            label = row.label + (f", {row.note}" if row.note else "")
            lines.append(f"| {label} | " + " | ".join(map(_cell, row.cells)) + " |")
    return "\n\n".join(["\n".join(lines), summary.verdict, summary.gate.sentence(), *_picture(summary), *links])


def _picture(summary: Summary) -> list[str]:
    from sparsekd.report import tradeoff  # matplotlib comes with it

    drawing = tradeoff.picture(tradeoff.variants(summary))
    if drawing is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        return [embedded(drawing.write_png(Path(folder)), drawing.alt)]


def embedded(picture: Path, alt: str) -> str:
    """A PNG file inside Markdown: Prefect has no place for files."""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"![{alt}](data:image/png;base64,{data})"


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
