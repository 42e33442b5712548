"""`sparsekd sweep`: check the grid, say what will run, run the flow with a line a run, show the table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.checks import preflight
from flows.commands.display import Display, duration, make_console
from flows.settings import params
from flows.sweeps import grid
from flows.sweeps.grid import Plan
from tasks import environment


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    settings: Sequence[str]
    preset: str | None = None
    model: str | None = None
    texts: Sequence[str] = ()
    at: str | None = None
    name: str | None = None
    at_once: int = 2
    dry_run: bool = False


def sweep(request: Request) -> None:
    """Do it. Raises SparseKDError for what the user can mend, before anything runs, and where runs failed."""
    console = make_console()
    asked_in = Path.cwd()
    home = params.find_root()
    preflight.check_repository(home)
    settings = settings_of(request, asked_in, home)
    os.chdir(home)  # relative paths in params.yaml start here
    plan = grid.plan(home, settings, request.preset, request.at, request.name)
    done = plan.done()
    console.print(f"sweep {plan.name}: {len(plan.points)} runs, {len(done)} of them done before", markup=False)
    for point in plan.points:
        console.print(f"  {point.run}{'   done' if point.label in done else ''}", markup=False, soft_wrap=True)
    if request.dry_run:
        return
    environment.apply(home)
    environment.quiet_console()
    from flows.commands.launch import connected, outcome_of  # Prefect comes with them

    begun = time.monotonic()
    with Display(plan.folder, [point.label for point in plan.points], console), connected(home):
        from flows.sweep import sweep as flow

        state = flow(settings, request.preset, request.at, plan.name, request.at_once, return_state=True)
    show(plan, console)
    outcome_of(state)
    console.print(f"Done in {duration(time.monotonic() - begun)}.")


def settings_of(request: Request, asked_in: Path, home: Path) -> list[str]:
    """Model and texts as settings too; their paths were typed in the folder `asked_in`."""
    settings = [*request.settings]
    if request.model is not None:
        settings.append(f"model.source={params.from_root(request.model, asked_in, home)}")
    if request.texts:
        sources = [params.from_root(text, asked_in, home) for text in request.texts]
        settings.append(f"texts.sources={','.join(sources)}")
    return settings


def show(plan: Plan, console: Console) -> None:
    """The table of what is done, and where it and the picture are."""
    from flows.sweeps.compare import summaries
    from sparsekd.report import tradeoff  # matplotlib comes with it

    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(tradeoff.COLUMNS):
        table.add_column(column, justify="left" if number in (0, len(tradeoff.COLUMNS) - 1) else "right")
    for row in tradeoff.rows(tradeoff.results(summaries(plan))):
        table.add_row(*row)
    console.print()
    console.print(table, soft_wrap=not console.is_terminal)
    for line in (
        "KL and loss: nats a token on test texts, means over the corpora. In brackets: 95 % of tasks, range of speeds.",
        f"table, figures, picture   {plan.folder}",
        f"bring one back            sparsekd restore {plan.name}-LABEL --out DIR",
    ):
        console.print(line, markup=False, soft_wrap=True)
