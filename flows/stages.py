"""All stages of dvc.yaml as Prefect tasks, in the order that dvc.yaml gives, and what follows when they are done."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run as this_run

from flows.flow_runs.result import result_page
from flows.server.servers import served_mlflow
from flows.workspaces import known
from sparsekd.errors import ConfigError, StageError
from tasks.graph import read_graph, upstream
from tasks.remote import Remote, default_remote
from tasks.stage import Run, stage_task
from tasks.state import StageState, write_json
from tasks.track import TrackResult, track
from tasks.tracking import pending

SIDE_BY_SIDE_VARIABLE = "SPARSEKD_SIDE_BY_SIDE"
"""How many independent stages run at once; 2 by default. A stage with `meta: {alone: true}` always runs alone."""


def run_stages(root: Path, home: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Run the graph of the workspace at `root`: how each stage went, and the seconds of those computed, with `total`.

    `home` is the checkout whose places it takes. Raises StageError naming the first stage that failed.
    """
    graph = read_graph(root)
    configured = default_remote(root)
    remote = Remote(root, configured, get_run_logger().warning) if configured else None
    run = Run(root, graph, side_by_side(), home, remote)
    begun = time.monotonic()
    for name in graph:
        StageState(name, "waiting").write(root)
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        with known.telling(root, home):
            for name, spec in graph.items():
                needed = [futures[other] for other in upstream(spec, graph)]
                futures[name] = stage_task(spec).submit(name, run, wait_for=needed)
            for future in futures.values():
                future.wait()
        if remote is not None:
            remote.finish()
    except BaseException:  # Ctrl-C, SIGTERM, a cancellation: none of them may leave a stage at work
        run.stop()
        raise
    if run.failures:
        raise next(iter(run.failures.values()))
    results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
    unfinished = [name for name, future in futures.items() if not future.state.is_completed()]
    if unfinished:
        raise StageError(f"Stage {unfinished[0]} did not finish; its state is {futures[unfinished[0]].state.name}.")
    seconds = {name: result.seconds for name, result in results.items() if result.outcome == "computed"}
    return {name: result.outcome for name, result in results.items()}, {**seconds, "total": time.monotonic() - begun}


def side_by_side() -> int:
    """How many stages work at once on this machine. Raises ConfigError where the variable holds no such number."""
    text = os.environ.get(SIDE_BY_SIDE_VARIABLE, "2")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(
            f"{SIDE_BY_SIDE_VARIABLE} is {text!r}; it must be a number of stages from 1 up. Unset it for 2."
        )
    return int(text)


def show_and_track(root: Path, home: Path, seconds: dict[str, float], name: str | None = None) -> str | None:
    """Log the run to MLflow and show its table in Prefect, where there is a report. The MLflow run's id, if any."""
    if not (root / "data/report/summary.json").is_file():
        return None
    known.remember(home, root, name)
    logged = cast("TrackResult | None", _track(root, home, this_run.id, seconds, name))  # Prefect's types promise less
    page = result_page(root, _links(root, home, logged, name))
    if page:
        create_markdown_artifact(key="result", markdown=page, description="dense, pruned and distilled")
    return logged.run_id if logged else None


def _links(root: Path, home: Path, logged: TrackResult | None, name: str | None) -> list[str]:
    """Where to look further: the MLflow run, which has the report among its files, and the checkpoint."""
    links = [
        f"Checkpoint and report: `sparsekd restore {name}`" if name else f"Report: `{root}/data/report/index.html`"
    ]
    if logged and logged.run_id and (server := served_mlflow(home)):
        page = f"{server}/#/experiments/{logged.experiment}/runs/{logged.run_id}"
        links.insert(0, f"[MLflow run]({page}), [report]({page}/artifacts/report/index.html)")
    return links


@task(name="track", task_run_name="track", cache_policy=NO_CACHE, persist_result=False)
def _track(root: Path, home: Path, flow_run_id: str | None, seconds: dict[str, float], name: str | None) -> Any:
    """Log the finished run to MLflow: a TrackResult or None. An outage costs a warning; the next run logs it."""
    logger = get_run_logger()
    try:
        result = track(root, flow_run_id, durations=seconds, home=home, name=name)
    except Exception as error:  # a compression that is done does not fail for its record
        logger.warning("MLflow: %s: %s", type(error).__name__, error)
        if not pending.marker_path(home).exists():
            reason = {"pending": [], "reason": str(error), "next": "python -m tasks.track"}
            write_json(pending.marker_path(home), reason)
        return None
    if result.warning:
        logger.warning(result.warning)
    if result.run_id:
        logger.info(
            "MLflow run %s (%s), model %s/%s", result.run_name, result.run_id, result.model_name, result.model_version
        )
    return result
