"""Which Prefect flow run has a workspace or the checkout: noted there, so that one that was killed can be closed."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed

from flows.workspaces.workspace import workspaces
from tasks.state import FOLDER, read_json, write_json


def note_run(root: Path, flow_run_id: str | None) -> None:
    """The flow run `flow_run_id`, in its present attempt, has the place at `root` now."""
    write_json(_path(root), {"flow_run_id": flow_run_id, "attempt": this_run.run_count})


def holding_run(root: Path) -> str | None:
    """The id of the flow run that had the place at `root` last."""
    values = read_json(_path(root))
    return values.get("flow_run_id") if isinstance(values, dict) else None


def name_run(flow_run_id: str | None, name: str) -> None:
    """Give the flow run the name that its experiment and its MLflow run have."""
    if flow_run_id is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run_id), name=name)


def name_of(flow_run: FlowRun) -> str:
    """The flow run's name as it is now: an isolated run got its own after Prefect handed out `flow_run`."""
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run.id).name
    return flow_run.name


def place_of(home: Path, flow_run_id: str) -> Path | None:
    """Where the flow run works: the checkout, one of its workspaces, or nowhere yet."""
    places = [home, *(space.path for space in workspaces(home))]
    return next((place for place in places if holding_run(place) == flow_run_id), None)


def close_unfinished(root: Path, message: str) -> None:
    """Mark the noted flow run as crashed if Prefect still takes it for running. Call it when its process is gone.

    One that has been started again since, maybe on another machine, is left alone.
    """
    noted = holding_run(root)
    if noted is None:
        return
    attempt = read_json(_path(root)).get("attempt")
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(noted))
            moved_on = attempt is not None and run.run_count > attempt
            if run.state is not None and not run.state.is_final() and not run.state.is_scheduled() and not moved_on:
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    except Exception as error:  # another server or a new database: there is nothing to close
        logging.getLogger(__name__).debug("flow run %s: %s", noted, error)


def _path(root: Path) -> Path:
    return root / FOLDER / "run.json"
