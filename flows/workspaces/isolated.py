"""A run in a workspace of its own: opened, run, kept as a DVC experiment, and noted."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run

from flows.flow_runs.holding import close_unfinished, name_run, note_run, place_of
from flows.flow_runs.hooks import ended
from flows.flow_runs.orphan import end_with_parent
from flows.flow_runs.result import gate_of
from flows.settings import params, settle
from flows.stages import run_stages, show_and_track
from flows.workspaces import history, workspace
from flows.workspaces.commands import git
from flows.workspaces.lock import current_holder, held_here, run_lock
from flows.workspaces.workspace import Workspace
from sparsekd.errors import SparseKDError
from tasks.state import read_json
from tasks.tracking.record import SWEEP_VARIABLE


def run_isolated(home: Path, given: dict[str, dict[str, Any]], at: str | None, name: str | None) -> State[Any]:
    """Run in the workspace `name` if this process has opened it already, else in a new one."""
    made = name is None or not held_here(Workspace(home, name).path)
    if made:
        _remove_leftovers(home, name)
        config = settle.merge(params.load_at(home, at), given)
        name = name or history.new_name(home, config)
        workspace.create(home, name, at)
    assert name is not None
    space = Workspace(home, name)
    try:
        os.chdir(space.path)
        end_with_parent()
        name_run(this_run.id, space.name)
        with run_lock(space.path, command=f"flow run {space.name}"):
            note_run(space.path, this_run.id)
            return _run_and_keep(space, given)
    finally:
        os.chdir(home)
        if made:
            workspace.remove(space)


def _remove_leftovers(home: Path, name: str | None) -> None:
    """Remove what a killed run of this name, or an earlier attempt of this flow run, left here."""
    places = [place_of(home, str(this_run.id)), Workspace(home, name).path if name else None]
    for place in places:
        if place is not None and place != home and place.exists() and current_holder(place) is None:
            close_unfinished(place, "Its process was killed; a later run went on from what was whole.")
            workspace.remove(Workspace(home, place.name))


def _run_and_keep(space: Workspace, given: dict[str, dict[str, Any]]) -> State[Any]:
    """Run the stages in `space`, keep what they made as an experiment, and note how it went."""
    logger = get_run_logger()
    for change in settle.settle(given, space.path, space.home):
        logger.info("params.yaml: %s", change)
    config = params.load(space.path)
    commit = git(space.path, "rev-parse", "HEAD")
    record = replace(history.record_of(space.name, config, time.time()), commit=commit, flow_run_id=str(this_run.id))
    record.write(space.home)
    try:
        outcomes, seconds = run_stages(space.path, space.home)
        mlflow_run = show_and_track(space.path, space.home, seconds, space.name)
        found = gate_of(space.path)
        workspace.save(space, tag=found is not None and found.state == "passed" and not os.environ.get(SWEEP_VARIABLE))
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
