"""A run in a workspace of its own: opened, run, kept as a DVC experiment, and noted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run

from flows import history, params, settle, workspace
from flows.commands import git
from flows.history import RunRecord
from flows.holding import name_run, note_run
from flows.hooks import ended
from flows.lock import run_lock
from flows.orphan import end_with_parent
from flows.result import gate_of
from flows.stages import run_stages, show_and_track
from flows.workspace import Workspace
from sparsekd.errors import SparseKDError
from tasks.state import read_json


def run_isolated(home: Path, given: dict[str, dict[str, Any]], at: str | None, name: str | None) -> State[Any]:
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


def _run_and_keep(space: Workspace, given: dict[str, dict[str, Any]]) -> State[Any]:
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
        found = gate_of(space.path)
        if found is not None and found.state == "passed":
            logger.info("Tagged as %s.", workspace.promote(space))
    except BaseException as error:
        record.end(space.home, "failed" if isinstance(error, SparseKDError) else "stopped", reason=str(error))
        raise
    finally:
        history.keep_logs(space)
    metrics = read_json(space.path / "data/report/metrics.json") or {}
    said = found.state if found else None
    record.end(space.home, "done", mlflow_run_id=mlflow_run, gate=said, result=metrics, outcomes=outcomes)
    logger.info("Kept as experiment %s: `sparsekd restore %s` brings it back.", space.name, space.name)
    return ended(outcomes, found)
