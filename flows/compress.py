"""The flow: params.yaml is settled, then every stage of dvc.yaml runs as a Prefect task, in dvc.yaml's order.

Prefect shows, orders and starts; DVC decides what has to be computed; each stage computes in a process of its own. A
run works in the checkout, or isolated: in a workspace of its own, from which it is kept as a DVC experiment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tasks import environment, prefect_log

environment.apply(environment.checkout_root())  # before prefect is imported: it reads its settings then

from prefect import Flow, flow, get_run_logger  # noqa: E402
from prefect.client.schemas.objects import FlowRun, State  # noqa: E402
from prefect.runtime import flow_run as this_run  # noqa: E402
from prefect.states import Completed, Failed  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows import history, params, settle, workspace  # noqa: E402
from flows.commands import git  # noqa: E402
from flows.history import RunRecord  # noqa: E402
from flows.holding import close_unfinished, name_run, note_run, place_of  # noqa: E402
from flows.late import why_skipped  # noqa: E402
from flows.lock import run_lock  # noqa: E402
from flows.notify import notify  # noqa: E402
from flows.orphan import end_with_parent  # noqa: E402
from flows.stages import run_stages, show_and_track  # noqa: E402
from flows.workspace import Workspace  # noqa: E402
from sparsekd.config import (  # noqa: E402
    Benchmark,
    Calibrate,
    Distill,
    Evaluate,
    Model,
    Prune,
    Report,
    RunConfig,
    Runtime,
    Section,
    Teacher,
    Texts,
)
from sparsekd.errors import SparseKDError  # noqa: E402
from tasks.graph import read_graph  # noqa: E402
from tasks.groups import end_recorded_groups  # noqa: E402
from tasks.repair import repair  # noqa: E402
from tasks.state import read_json  # noqa: E402

prefect_log.shorten()
_DEFAULTS = RunConfig()


def _end_stages(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancelled or crashed: end what the run left, in whatever process Prefect calls this."""
    root = place_of(environment.checkout_root(), str(flow_run.id))
    if root is not None:  # not one that waits for its turn
        end_recorded_groups(root, read_graph(root))


def _tell(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    notify(str(state.name).lower(), flow_run.name, state.message or "", flow_run_id=str(flow_run.id))


@flow(
    name="compress",
    on_cancellation=[_end_stages],
    on_crashed=[_end_stages, _tell],
    on_failure=[_tell],
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # they wait for each other; Run.slot limits what works at once
    retries=0,
    persist_result=False,
)
def compress(
    runtime: Runtime = _DEFAULTS.runtime,
    model: Model = _DEFAULTS.model,
    texts: Texts = _DEFAULTS.texts,
    calibrate: Calibrate = _DEFAULTS.calibrate,
    teacher: Teacher = _DEFAULTS.teacher,
    prune: Prune = _DEFAULTS.prune,
    distill: Distill = _DEFAULTS.distill,
    evaluate: Evaluate = _DEFAULTS.evaluate,
    benchmark: Benchmark = _DEFAULTS.benchmark,
    report: Report = _DEFAULTS.report,
    isolated: bool = False,
    at: str | None = None,
    name: str | None = None,
    max_late: float | None = None,
    wait: bool = False,
) -> Any:
    """Compress a language model end to end: fetch, calibrate, prune, distil, evaluate, benchmark, report.

    Runs what is out of date by params.yaml, and only that; an unchanged stage ends as *Cached*. Values given here are
    written to params.yaml first; what is not given stays as it stands there. The result is a stock checkpoint in
    data/distilled and its proof in data/report/index.html.

    Args:
        runtime: Where and how the numbers are computed.
        model: The dense model.
        texts: What is calibrated and trained on.
        calibrate: How texts become packed sequences.
        teacher: The cache of the dense model's hidden states.
        prune: How much is removed, and how.
        distill: How the pruned model learns from the dense one.
        evaluate: What is measured of all three models.
        benchmark: How speed is measured.
        report: What the report shows beside the numbers.
        isolated: Work in a workspace of its own, leave the checkout as it is, and end as a DVC experiment.
        at: The commit, tag or experiment that an isolated run starts from; by default the checkout as it stands.
        name: Of an isolated run: its experiment, MLflow run and flow run; by default made of model, width and time.
        max_late: A scheduled run that starts so many minutes after its time is skipped. By default it is skipped only
            when the next one of its schedule is due too.
        wait: If another run has this checkout, start after it instead of failing.
    """
    sections = {key: value for key, value in locals().items() if isinstance(value, Section)}
    given = {section: value.model_dump(exclude_unset=True) for section, value in sections.items()}
    given = {section: values for section, values in given.items() if values}
    home = environment.checkout_root()
    if reason := why_skipped(this_run.id, max_late):
        return Completed(name="Skipped", message=f"Skipped, late: {reason}.")
    try:
        if isolated or at is not None:
            return _run_isolated(home, given, at, name)
        return _run_in_checkout(home, given, wait)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _run_in_checkout(root: Path, given: dict[str, dict[str, Any]], wait: bool) -> dict[str, str]:
    logger = get_run_logger()
    os.chdir(root)
    end_with_parent(root)
    with run_lock(root, wait=wait, command=f"flow run {this_run.name}", on_wait=logger.info):
        for line in repair(root):
            logger.info(line)
        close_unfinished(root, "Its process was killed; a later run went on from what was whole.")
        note_run(root, this_run.id)
        for change in settle.settle(given, root):
            logger.info("params.yaml: %s", change)
        outcomes, seconds = run_stages(root, root)
        show_and_track(root, root, seconds)
        return outcomes


def _run_isolated(home: Path, given: dict[str, dict[str, Any]], at: str | None, name: str | None) -> dict[str, str]:
    """Open the workspace `name`, which the command line may have made already, or make one; run there."""
    made = name is None or not Workspace(home, name).path.exists()
    if made:
        config = settle.merge(params.load_at(home, at), given)
        name = name or history.new_name(home, config)
        workspace.create(home, name, at)
    space = Workspace(home, name)
    try:
        os.chdir(space.path)
        end_with_parent(space.path)
        name_run(this_run.id, space.name)
        with run_lock(space.path, command=f"flow run {space.name}"):
            note_run(space.path, this_run.id)
            return _run_and_keep(space, given)
    finally:
        os.chdir(home)
        if made:
            workspace.remove(space)


def _run_and_keep(space: Workspace, given: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Run the stages in `space`, keep what they made as an experiment, and note how it went."""
    logger = get_run_logger()
    for change in settle.settle(given, space.path, space.home):
        logger.info("params.yaml: %s", change)
    config = params.load(space.path)
    commit = git(space.path, "rev-parse", "HEAD")
    record = RunRecord(
        space.name,
        config.model.source,
        config.prune.width,
        time.time(),
        commit=commit,
        flow_run_id=str(this_run.id),
        texts=history.texts_of(config),
    )
    record.write(space.home)
    try:
        outcomes, seconds = run_stages(space.path, space.home)
        mlflow_run = show_and_track(space.path, space.home, seconds, space.name)
        workspace.save(space)
    except BaseException as error:
        record.end(space.home, "failed" if isinstance(error, SparseKDError) else "stopped", reason=str(error))
        raise
    finally:
        history.keep_logs(space)
    metrics = read_json(space.path / "data/report/metrics.json") or {}
    record.end(space.home, "done", mlflow_run_id=mlflow_run, result=metrics, outcomes=outcomes)
    logger.info("Kept as experiment %s: `sparsekd restore %s` brings it back.", space.name, space.name)
    return outcomes
