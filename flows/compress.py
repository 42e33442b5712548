"""The flow: every stage of dvc.yaml as a Prefect task, in the order that dvc.yaml gives.

Prefect shows, orders and starts; DVC decides what has to be computed; each stage computes in a process of its own.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tasks import environment, prefect_log

environment.apply(environment.checkout_root())  # before prefect is imported: it reads its settings then

from prefect import Flow, flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas.objects import FlowRun, State  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.runtime import flow_run as this_run  # noqa: E402
from prefect.states import Failed  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows import settle  # noqa: E402
from flows.holding import close_unfinished, holding_run, note_run  # noqa: E402
from flows.lock import run_lock  # noqa: E402
from flows.orphan import end_with_parent  # noqa: E402
from flows.result_table import result_table  # noqa: E402
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
from sparsekd.errors import ConfigError, SparseKDError, StageError  # noqa: E402
from tasks.graph import read_graph, upstream  # noqa: E402
from tasks.groups import end_recorded_groups  # noqa: E402
from tasks.repair import repair  # noqa: E402
from tasks.stage import Run, stage_task  # noqa: E402
from tasks.state import StageState, write_json  # noqa: E402
from tasks.tracking import pending  # noqa: E402

prefect_log.shorten()
_DEFAULTS = RunConfig()
SIDE_BY_SIDE_VARIABLE = "SPARSEKD_SIDE_BY_SIDE"
"""How many independent stages run at once; 2 by default. A stage with `meta: {alone: true}` always runs alone."""


def _end_stages(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancelled or crashed: end what the run left, in whatever process Prefect calls this."""
    root = environment.checkout_root()
    if holding_run(root) == str(flow_run.id):  # not one that waits for its turn
        end_recorded_groups(root, read_graph(root))


@flow(
    name="compress",
    on_cancellation=[_end_stages],
    on_crashed=[_end_stages],
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
        wait: If another run has this checkout, start after it instead of failing.
    """
    sections = {name: value for name, value in locals().items() if isinstance(value, Section)}
    given = {name: value.model_dump(exclude_unset=True) for name, value in sections.items()}
    root = environment.checkout_root()
    logger = get_run_logger()
    os.chdir(root)
    end_with_parent(root)
    try:
        with run_lock(root, wait=wait, command=f"flow run {this_run.name}", on_wait=logger.info):
            for line in repair(root):
                logger.info(line)
            close_unfinished(root, "Its process was killed; a later run went on from what was whole.")
            note_run(root, this_run.id)
            for change in settle.settle({name: values for name, values in given.items() if values}, root):
                logger.info("params.yaml: %s", change)
            return _run_stages(root)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _run_stages(root: Path) -> dict[str, str]:
    """Run the graph; how each stage went. Raises StageError naming the first that failed."""
    graph = read_graph(root)
    run = Run(root, graph, _side_by_side())
    begun = time.monotonic()
    for name in graph:
        StageState(name, "waiting").write(root)
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        for name, spec in graph.items():
            needed = [futures[other] for other in upstream(spec, graph)]
            futures[name] = stage_task(spec).submit(name, run, wait_for=needed)
        for future in futures.values():
            future.wait()
    except BaseException:  # Ctrl-C, SIGTERM, a cancellation: none of them may leave a stage at work
        run.stop()
        raise
    if run.failures:
        raise next(iter(run.failures.values()))
    results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
    unfinished = [name for name, future in futures.items() if not future.state.is_completed()]
    if unfinished:
        raise StageError(f"Stage {unfinished[0]} did not finish; its state is {futures[unfinished[0]].state.name}.")
    _finish(root, {name: r.seconds for name, r in results.items() if r.outcome == "computed"}, time.monotonic() - begun)
    return {name: result.outcome for name, result in results.items()}


def _side_by_side() -> int:
    text = os.environ.get(SIDE_BY_SIDE_VARIABLE, "2")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(
            f"{SIDE_BY_SIDE_VARIABLE} is {text!r}; it must be a number of stages from 1 up. Unset it for 2."
        )
    return int(text)


def _finish(root: Path, seconds: dict[str, float], total: float) -> None:
    """Log the run to MLflow and show its table in Prefect, where there is a report."""
    if not (root / "data/report/summary.json").is_file():
        return
    _track(root, this_run.id, {**seconds, "total": total})
    table = result_table(root)
    if table:
        create_markdown_artifact(key="result", markdown=table, description="dense, pruned and distilled")


@task(name="track", task_run_name="track", cache_policy=NO_CACHE, persist_result=False)
def _track(root: Path, flow_run_id: str | None, seconds: dict[str, float]) -> None:
    """Log the finished run to MLflow. An outage costs a warning; the next run logs it."""
    from tasks.track import track

    logger = get_run_logger()
    try:
        result = track(root, flow_run_id, durations=seconds)
    except Exception as error:  # a compression that is done does not fail for its record
        logger.warning("MLflow: %s: %s", type(error).__name__, error)
        if not pending.marker_path(root).exists():
            reason = {"pending": [], "reason": str(error), "next": "python -m tasks.track"}
            write_json(pending.marker_path(root), reason)
        return
    if result.warning:
        logger.warning(result.warning)
    if result.run_id:
        logger.info(
            "MLflow run %s (%s), model %s/%s", result.run_name, result.run_id, result.model_name, result.model_version
        )
