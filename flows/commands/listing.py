"""`sparsekd runs`: the isolated runs, newest first."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import typer
from rich.table import Table

from flows.commands.display import duration, make_console
from flows.settings import params
from flows.settings.params_text import plain
from flows.workspaces.history import RunRecord, runs
from flows.workspaces.lock import current_holder
from flows.workspaces.workspace import Workspace, experiments


def show(as_json: bool = False) -> None:
    """Print them as a table, or all that is known of them as JSON."""
    home = params.find_root()
    found, kept = runs(home), set(experiments(home))
    if as_json:
        typer.echo(json.dumps([asdict(record) | {"experiment": record.name in kept} for record in found], indent=2))
        return
    console = make_console()
    if not found:
        console.print("No isolated run yet: `sparsekd compress --isolated`, or a run from a form of `sparsekd serve`.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "when", "model", "width", "state", "took", "result", "gate", "MLflow run"):
        table.add_column(column, overflow="fold", justify="right" if column == "width" else "left")
    for record in found:
        table.add_row(*_row(record, record.name in kept))
    console.print(table, soft_wrap=not console.is_terminal)


def _row(record: RunRecord, kept: bool) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.started))
    took = duration(record.ended - record.started) if record.ended and record.ended > record.started else ""
    state: str = record.state if kept or record.state != "done" else "done, given up"
    if state == "running" and current_holder(Workspace(params.find_root(), record.name).path) is None:
        state = "killed"
    return (
        record.name,
        when,
        record.model,
        record.budget or str(plain(record.width)),
        state,
        took,
        result_line(record),
        record.gate or "",
        (record.mlflow_run_id or "")[:8],
    )


def result_line(record: RunRecord) -> str:
    """The result in a few words, or why there is none."""
    if record.state in {"failed", "stopped"}:
        return (record.reason or "")[:80]
    figures = record.result
    parts = []
    if "total_reduction" in figures:
        parts.append(f"{figures['total_reduction']:.1%} smaller")
    if "kl" in figures:
        parts.append(f"KL {figures['kl']:.3f}")
    if "task_recovery" in figures:
        parts.append(f"tasks {figures['task_recovery']:.0%}")
    return ", ".join(parts)
