"""The loss curve as CSV, one row a step: written as it goes beside the checkpoints, and whole beside the result."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COLUMNS = (
    "step", "tokens", "loss", "kl", "ce", "gradient_norm", "learning_rate", "validation_kl", "validation_ce",
)  # fmt: skip


def write_curve(curve: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write the curve anew."""
    with file.open("w", newline="") as stream:
        csv.DictWriter(stream, COLUMNS, lineterminator="\n").writeheader()
    append_rows(curve, file)


def append_rows(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Add rows at the end of a curve."""
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
