"""`sparsekd report`: options and help texts only, like flows/cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

EXAMPLES = (
    "Examples: sparsekd report  |  sparsekd report half SmolLM2-135M-Instruct-width-0.75  |  "
    "sparsekd report ../other/data/report data/report --out ./comparison"
)


def report(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Argument(metavar="NAME…", help="Results: runs of `sparsekd runs`, or directories with a summary.json."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="DIR", help="Where index.html goes; by default .sparsekd/comparison."),
    ] = None,
) -> None:
    """Compare results on one page that opens offline: size, quality, speed, and which ones another dominates.

    Without a name, all results that this checkout knows. The report of the latest run is data/report/index.html.
    """
    from flows.commands import reporting

    reporting.report(names or (), out)
