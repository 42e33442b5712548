"""Flows that are one command of `sparsekd`: a process group of its own, whose lines come to the flow run's log."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as this_run

from flows.flow_runs.child import run_child
from flows.flow_runs.hooks import tell
from flows.flow_runs.orphan import end_with_parent
from flows.stages import side_by_side
from tasks import environment
from tasks.groups import end_recorded_groups
from tasks.places import place
from tasks.state import FOLDER


def run_command(home: Path, command: str, arguments: list[str]) -> Path:
    """Run `sparsekd COMMAND --out=… ARGUMENTS` in the checkout at `home` for this flow run, and return its --out.

    That is `.sparsekd/evaluations/<flow run>/COMMAND`, made anew, which `sparsekd gc` frees after a while. Raises
    StageError with what the command says.
    """
    here = home / FOLDER / "evaluations" / str(this_run.id)
    out, log = here / command, here / "log"
    shutil.rmtree(out, ignore_errors=True)  # half of an earlier attempt
    end_with_parent()
    with place(home, side_by_side(), alone=False):
        run_child(
            ["flows", command, f"--out={out}", *arguments],
            root=home,
            name=f"{command} {this_run.id}",
            log=log,
            on_poll=new_lines(log, command, get_run_logger().info),
        )
    return out


def end_command(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancelled or crashed: end the command of a flow that has its name."""
    end_recorded_groups(environment.checkout_root(), [f"{flow.name} {flow_run.id}"])


COMMAND_FLOW: dict[str, Any] = {
    "on_cancellation": [end_command],
    "on_crashed": [end_command, tell],
    "on_failure": [tell],
    "retries": 0,
    "persist_result": False,
}
"""What every flow that is one command has in common."""


def new_lines(log: Path, command: str, say: Callable[[str], None]) -> Callable[[], None]:
    """What, called now and then, says each line of progress and each warning that has come to `log` since."""
    seen = 0

    def look() -> None:
        nonlocal seen
        text = log.read_text(errors="replace") if log.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for line in whole[seen:].splitlines():
            if line.startswith((f"{command}: ", "warning: ")):  # and not the figures, which are shown as a table
                say(line.removeprefix(f"{command}: "))
        seen = len(whole)

    return look
