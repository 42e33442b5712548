"""The flow `sweep`: a grid of isolated runs that share what they have in common, and their results side by side."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Annotated, Any, cast

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import Flow, flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas.objects import FlowRun, State  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.runtime import flow_run as this_run  # noqa: E402
from prefect.states import Completed, Failed  # noqa: E402
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner  # noqa: E402
from pydantic import Field  # noqa: E402

from flows.commands.display import STAGES  # noqa: E402
from flows.flow_runs.child import run_child  # noqa: E402
from flows.flow_runs.holding import close_unfinished, name_run  # noqa: E402
from flows.flow_runs.hooks import begin, tell  # noqa: E402
from flows.flow_runs.orphan import end_with_parent  # noqa: E402
from flows.settings import params  # noqa: E402
from flows.settings.params import PresetName  # noqa: E402
from flows.sweeps import grid  # noqa: E402
from flows.sweeps.compare import compare  # noqa: E402
from flows.sweeps.grid import Plan, Point  # noqa: E402
from flows.workspaces import workspace  # noqa: E402
from flows.workspaces.lock import run_lock  # noqa: E402
from sparsekd.errors import SparseKDError, StageError  # noqa: E402
from tasks.graph import read_graph  # noqa: E402
from tasks.groups import end_recorded_groups  # noqa: E402
from tasks.state import FOLDER, StageState, log_path, progress_path, read_json, read_state, write_json  # noqa: E402
from tasks.tracking.record import SWEEP_VARIABLE  # noqa: E402

_GRACE_SECONDS = 15.0


class _Sweep:
    """A sweep at work: `slots` limits how many of its runs go on at once. Not a dataclass: Prefect copies those."""

    def __init__(self, plan: Plan, at_once: int) -> None:
        self.plan = plan
        self.slots = threading.Semaphore(at_once)
        self.stopping = threading.Event()


def _end_points(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancelled or crashed: end the runs, whose guards end their stages, in whatever process Prefect calls this."""
    for folder in (environment.checkout_root() / FOLDER / "sweeps").glob("*"):
        if (folder / FOLDER / "flow_run").is_file() and (folder / FOLDER / "flow_run").read_text() == str(flow_run.id):
            end_recorded_groups(folder, _labels(folder))


@flow(
    name="sweep",
    on_cancellation=[_end_points],
    on_crashed=[_end_points, tell],
    on_failure=[tell],
    # They wait for each other; _Sweep.slots limits what works
    task_runner=cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=64)),
    retries=0,
    persist_result=False,
)
def sweep(
    settings: list[str],
    preset: PresetName | None = None,
    at: str | None = None,
    name: str | None = None,
    at_once: Annotated[int, Field(ge=1)] = 2,
    max_late: float | None = None,
) -> Any:
    """Compress once for each combination of settings, in isolated runs, and compare: quality against cost.

    What the runs share is computed once. A run that is done is not repeated: the same sweep, started again after a stop
    or a failure, goes on. The table and the picture are an artifact of this flow run and lie in .sparsekd/sweeps/NAME.

    Args:
        settings: As `stage.key=value`; several values between commas span the grid, such as prune.width=0.9,0.75.
        preset: How thorough to be; by default params.yaml as it stands.
        at: The commit, tag or experiment to start from; by default the checkout as it stands.
        name: Of the sweep; by default made of what it computes, so that the same settings go on with the same sweep.
        at_once: Most runs at once. Stages of all runs share the places of the machine in any case.
        max_late: A scheduled run that starts so many minutes after its time is skipped.
    """
    home = environment.checkout_root()
    try:
        if (late := begin(home, max_late)) is not None:
            return late
        return _sweep(grid.plan(home, settings, preset, at, name), at_once)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _sweep(plan: Plan, at_once: int) -> Any:
    os.chdir(plan.home)
    name_run(this_run.id, plan.name)
    labels = [point.label for point in plan.points]
    with run_lock(plan.folder, command=f"sweep {plan.name}"):
        plan.write()
        end_recorded_groups(plan.folder)  # what a killed sweep left for the moment until its guard acts
        end_with_parent()
        (plan.folder / FOLDER / "flow_run").write_text(str(this_run.id))
        outcomes, failures = _run_points(_Sweep(plan, at_once))
        compare(plan, str(this_run.id))
    if failures:
        first = next(iter(failures))
        others = f"; failed too: {', '.join(list(failures)[1:])}" if len(failures) > 1 else ""
        raise StageError(f"{len(failures)} of {len(labels)} runs failed, {first}: {failures[first]}{others}")
    return Completed(message=f"{len(labels)} runs.", data=outcomes)


def _run_points(running: _Sweep) -> tuple[dict[str, str], dict[str, str]]:
    """Run what is not done: how each point went, and why those failed that did."""
    plan, done = running.plan, running.plan.done()
    for point in plan.points:
        StageState(point.label, "cached" if point.label in done else "waiting", ended=time.time()).write(plan.folder)
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        futures = {
            point.label: _point.with_options(task_run_name=point.label).submit(point, running, point.label in done)
            for point in plan.points
        }
        for future in futures.values():
            future.wait()
    except BaseException:  # Ctrl-C, SIGTERM, a cancellation: none of them may leave a run at work
        running.stopping.set()  # each ends its run, which closes its flow run
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            for future in futures.values():
                future.wait(max(deadline - time.monotonic(), 0.1))
        finally:
            end_recorded_groups(plan.folder, [point.label for point in plan.points])
        raise
    outcomes, failures = {}, {}
    for label, future in futures.items():
        result = future.result(raise_on_failure=False)
        if isinstance(result, BaseException) or not future.state.is_completed():
            failures[label] = str(result) if isinstance(result, BaseException) else str(future.state.name)
        else:
            outcomes[label] = result
    return outcomes, failures


@task(name="point", cache_policy=NO_CACHE, persist_result=False)
def _point(point: Point, running: _Sweep, done: bool) -> Any:
    """The isolated run of one point, by a process of its own."""
    if done:
        return Completed(name="Cached", message=f"run {point.run} is done", data="done before")
    with running.slots:
        if running.stopping.is_set():
            raise StageError("The sweep was stopped.")
        return _run_point(point, running)


def _run_point(point: Point, running: _Sweep) -> str:
    logger, plan = get_run_logger(), running.plan
    if (space := plan.left_behind(point)) is not None:
        logger.info("going on with %s: what is whole comes from the cache", point.run)
        close_unfinished(space.path, "It was killed with its sweep; a later run went on from what was whole.")
        workspace.remove(space)
    start = {"commit": plan.revision.commit, "overlay": plan.revision.overlay}
    write_json(plan.file(point), {"run": point.run, **start, "values": params.sections(point.config)})
    log, begun = log_path(plan.folder, point.label), time.time()
    shown = str(log.relative_to(plan.home))
    StageState(point.label, "running", begun, log=shown).write(plan.folder)
    logger.info("%s starts; its flow run has the same name", point.run)

    def poll() -> None:
        _note_progress(point, plan)
        if running.stopping.is_set():
            raise StageError("The sweep was stopped.")

    try:
        run_child(
            ["flows.sweeps.point", str(plan.file(point))],
            root=plan.folder,
            name=point.label,
            log=log,
            variables={SWEEP_VARIABLE: plan.name},
            on_poll=poll,
            grace=_GRACE_SECONDS,
        )
    except StageError as error:
        ended = time.time()
        StageState(point.label, "failed", begun, ended, ended - begun, str(error), shown).write(plan.folder)
        raise StageError(f"{error} Its log is {shown}.") from None
    ended = time.time()
    StageState(point.label, "done", begun, ended, ended - begun, None, shown).write(plan.folder)
    return "done"


def _note_progress(point: Point, plan: Plan) -> None:
    """How many of the run's stages have ended, for the display."""
    place = workspace.Workspace(plan.home, point.run).path
    try:
        stages = read_graph(place)
    except (OSError, SparseKDError):  # its workspace is being made, or goes
        return
    states = [state.state for name in stages if (state := read_state(place, name))]
    ended = sum(state in ("done", "cached") for state in states)
    write_json(progress_path(plan.folder, point.label), {"done": ended, "total": len(stages), "unit": STAGES})


def _labels(folder: Path) -> list[str]:
    noted: Any = read_json(folder / "sweep.json")
    return list(noted["points"]) if isinstance(noted, dict) else []
