"""How every flow run begins and ends: what it does first, what Prefect calls at its end, the state that it ends in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as this_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.flow_runs.attempts import going_on
from flows.flow_runs.holding import name_of, place_of
from flows.flow_runs.late import why_skipped
from flows.flow_runs.notify import notify
from sparsekd.report.summary import Gate
from tasks import environment
from tasks.graph import read_graph
from tasks.groups import end_recorded_groups

_GATE_STATES = {"passed": "Passed", "not passed": "Not passed", "not enough evidence": "Not enough evidence"}
"""The name of the flow run's state by what the gate said; all are of type Completed."""


def begin(home: Path, max_late: float | None) -> State[Any] | None:
    """Settle the process for the checkout at `home` and say which attempt this is; the state to end in if it is late.

    Raises StageError when the run has crashed as often as it may.
    """
    environment.apply(home)
    if reason := why_skipped(this_run.id, max_late):
        return Completed(name="Skipped", message=f"Skipped, late: {reason}.")
    if text := going_on(this_run.run_count or 1, home):
        get_run_logger().warning(text)
    return None


def ended(outcomes: dict[str, str], found: Gate | None) -> State[Any]:
    """The run's last state: what the gate said is its name, and why is its message."""
    if found is None or found.state == "no limits":
        return Completed(data=outcomes)
    return Completed(name=_GATE_STATES[found.state], message=found.sentence(), data=outcomes)


def end_stages(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancelled or crashed: end what the run left, in whatever process Prefect calls this."""
    root = place_of(environment.checkout_root(), str(flow_run.id))
    if root is not None:  # not one that waits for its turn
        end_recorded_groups(root, read_graph(root))


def tell(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell the webhook how the run ended."""
    notify(str(state.name).lower(), name_of(flow_run), state.message or "", flow_run_id=str(flow_run.id))


def tell_unless_passed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell the webhook of a gate that was not passed."""
    if state.name in (_GATE_STATES["not passed"], _GATE_STATES["not enough evidence"]):
        tell(flow, flow_run, state)


STAGES_FLOW: dict[str, Any] = {
    "on_cancellation": [end_stages],
    "on_crashed": [end_stages, tell],
    "on_failure": [tell],
    "on_completion": [tell_unless_passed],
    "task_runner": ThreadPoolTaskRunner(max_workers=64),  # they wait for each other; Run.slot limits what works at once
    "retries": 0,
    "persist_result": False,
}
"""What every flow that runs the stages has in common."""
