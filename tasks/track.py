"""Log a finished compression to MLflow and register its model, from the stages' files. Not a stage of dvc.yaml.

The flow calls `track` after the stages; after a plain `dvc repro` type `python -m tasks.track`. MLflow is loaded inside
functions only: it takes seconds. See mlflow/README.md for what a run shows and how to look at it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sparsekd.errors import ArtifactError, SparseKDError
from tasks.quick import quicken
from tasks.state import FOLDER
from tasks.tracking import pending, registry
from tasks.tracking.record import Record, collect
from tasks.tracking.store import connect, experiment_id, locked, patient, resolve_uri, shown, uploading

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECORD_TAG, SAME_TAG, MODEL_TAG, VERSION_TAG = "sparsekd.record", "sparsekd.same_as", "model.name", "model.version"


NOTE_TAG = "mlflow.note.content"  # the description in the UI


@dataclass(frozen=True)
class TrackResult:
    """Where a compression is found. Without a run (`run_id` None) it waits to be logged, and `warning` says why."""

    run_id: str | None
    run_name: str
    model_name: str
    model_version: str | None
    uri: str
    warning: str | None = None
    experiment: str | None = None
    """MLflow's id of the experiment that the run is in."""


@dataclass(frozen=True)
class _Store:
    client: MlflowClient
    experiment: str


def track(
    root: Path,
    flow_run_id: str | None = None,
    uri: str | None = None,
    durations: dict[str, float] | None = None,
    *,
    home: Path | None = None,
    name: str | None = None,
) -> TrackResult:
    """Log what the stages under `root` left as one MLflow run, and make its model a registry version.

    `uri`: where, by default MLFLOW_TRACKING_URI or the database in `mlflow/`. `durations`: seconds by stage; the key
    `total` is the wall time. `home` is the checkout that keeps database and waiting runs, where `root` is a workspace
    of it; `name` is that run's. Runs that an earlier outage left waiting are logged first.

    - Same dvc.lock and parameters, and no flow run or the same one: the finished run is returned, nothing is added.
    - Same, from another flow run: a run of its own, tagged `sparsekd.same_as`, so that it is found by its flow run.
    - Same model bytes: the version that holds them is used; no second one is made.

    A store that is down costs a warning within seconds: the run waits in `.sparsekd/` and is logged next time.
    Raises ArtifactError when the outputs are incomplete or do not belong to params.yaml and to each other.
    """
    root = root.resolve()
    home = (home or root).resolve()
    uri = resolve_uri(home, uri)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patient())
        # Outputs that are at fault are refused before MLflow loads, which takes seconds; but not before what waits
        record = None if pending.waiting(home) else collect(root, flow_run_id, durations, name)
        try:
            stack.enter_context(locked(home / FOLDER / "track.lock"))
            store = _open(uri)
        except Exception as error:  # whatever a store or its driver raises: a compression does not fail for it
            return _wait(home, root, record or collect(root, flow_run_id, durations, name), uri, error)
        earlier = _log_waiting(home, store)
        record = record or collect(root, flow_run_id, durations, name)
        try:
            result = _log(home, root, store, record, uri)
        except ArtifactError:  # the outputs are at fault, not the store
            raise
        except Exception as error:
            return _wait(home, root, record, uri, error)
        pending.mark(home, earlier)
        return replace(result, warning=earlier)


def _open(uri: str) -> _Store:
    client = connect(uri)
    return _Store(client, experiment_id(client, uri))


def _wait(home: Path, root: Path, record: Record, uri: str, error: Exception) -> TrackResult:
    """Keep the run for next time, and say so."""
    pending.keep(home, record, root)
    reason = error if isinstance(error, SparseKDError) else f"{type(error).__name__}: {error}"
    short = " ".join(str(reason).split())[:300].rstrip(".")
    warning = (
        f"MLflow at {shown(uri)} could not log the run ({short}). Nothing is lost: it waits in "
        f"{pending.marker_path(home).relative_to(home)} and is logged by the next run or by `python -m tasks.track`."
    )
    pending.mark(home, short)
    return TrackResult(None, record.run_name, record.model.name, None, shown(uri), warning)


def _log_waiting(home: Path, store: _Store) -> str | None:
    """Log what earlier outages left. One that fails again stays, and the returned warning says why."""
    failed = []
    pending.sweep(home)
    for folder in pending.waiting(home):
        try:
            record = pending.read(folder)
            _send(store, record, folder)
            pending.drop(home, folder)
        except Exception as error:  # one bad record must not keep the others, or this run, from being logged
            failed.append(f"{folder.name} ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    if not failed:
        return None
    return f"Earlier runs still wait in {pending.pending_folder(home)}: {', '.join(failed)}."


def _log(home: Path, root: Path, store: _Store, record: Record, uri: str) -> TrackResult:
    finished = _search(store, f"tags.`sparsekd.key` = '{record.key}' and attributes.status = 'FINISHED'")
    same = [run for run in finished if run.data.tags.get(RECORD_TAG) == record.id]
    asked_for = record.tags.get("prefect.flow_run_id")
    if same or (finished and not asked_for):
        return _result((same or finished)[0], record, uri)
    if finished:
        record = replace(record, tags={**record.tags, SAME_TAG: finished[-1].info.run_id})
    folder = pending.keep(home, record, root, with_model=registry.find_version(store.client, record) is None)
    run = _send(store, record, folder)
    pending.drop(home, folder)
    return _result(run, record, uri)


def _result(run: Run, record: Record, uri: str) -> TrackResult:
    tags = run.data.tags
    name = tags.get(MODEL_TAG, record.model.name)
    where, experiment = shown(uri), str(run.info.experiment_id)
    return TrackResult(
        run.info.run_id, str(run.info.run_name), name, tags.get(VERSION_TAG), where, experiment=experiment
    )


def _search(store: _Store, condition: str) -> list[Run]:
    """Runs of the experiment, newest first."""
    return list(store.client.search_runs([store.experiment], condition, order_by=["attributes.start_time DESC"]))


def _send(store: _Store, record: Record, folder: Path) -> Run:
    """Log a kept record. A run that an outage or a kill left half logged is completed: no step here adds twice."""
    client = store.client
    found = _search(store, f"tags.`{RECORD_TAG}` = '{record.id}'")
    if found and found[0].info.status == "FINISHED":  # killed between the last step and the removal of the record
        return found[0]
    run = found[0] if found else _create(store, record)
    run_id = run.info.run_id
    try:
        _log_values(client, run_id, record)
        client.log_inputs(run_id, _inputs(record))
        client.log_artifacts(run_id, str(folder / "artifacts"))
        with uploading(folder):
            version = registry.register(client, run, record, folder / registry.FOLDER)
        registry.judge(client, version, record)
        for key, value in _model_tags(record, version.name, str(version.version)).items():
            client.set_tag(run_id, key, value)
        client.set_terminated(run_id, "FINISHED", end_time=record.ended)
    except Exception:
        with contextlib.suppress(Exception):  # most likely the store is gone, and the next attempt completes the run
            client.set_terminated(run_id, "FAILED", end_time=record.ended)
        raise
    return client.get_run(run_id)


def _model_tags(record: Record, name: str, version: str) -> dict[str, str]:
    """Where the model is: as tags, and as a link below the verdict (MLflow links a version to its first run only)."""
    link = f"[{name}, version {version}](#/models/{quote(name)}/versions/{version}): `models:/{name}/{version}`"
    note = "\n\n".join(part for part in (record.tags.get(NOTE_TAG), f"Model: {link}") if part)
    return {MODEL_TAG: name, VERSION_TAG: version, NOTE_TAG: note}


def _create(store: _Store, record: Record) -> Run:
    tags = {**record.tags, RECORD_TAG: record.id}
    return store.client.create_run(store.experiment, record.started, tags=tags, run_name=record.run_name)


def _log_values(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

    # One time stamp for all: a point that is sent again is then the same point, not a second one.
    metrics = [Metric(metric.key, metric.value, record.ended, metric.step) for metric in record.metrics]
    params = [Param(key, value) for key, value in record.params.items()]
    for some in _chunks(params, MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=some, synchronous=True)
    for points in _chunks(metrics, MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=points, synchronous=True)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _inputs(record: Record) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(item.name, item.digest, "local", json.dumps({"uri": item.path}), profile=json.dumps(item.profile)),
            [InputTag("mlflow.data.context", item.context)],
        )
        for item in record.datasets
    ]


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m tasks.track`: exit code 0, also when the store is down; 2 when there is nothing whole to log."""
    parser = argparse.ArgumentParser(prog="python -m tasks.track", description="Log the finished outputs to MLflow.")
    parser.add_argument("--uri", help="tracking URI; by default MLFLOW_TRACKING_URI or the database in mlflow/")
    parser.add_argument("--flow-run-id", help="the Prefect flow run that the outputs come from")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        result = track(Path.cwd(), options.flow_run_id, options.uri)
    except SparseKDError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if result.warning:
        print(f"warning: {result.warning}", file=sys.stderr)
    if result.run_id:
        print(f"MLflow run {result.run_name} ({result.run_id}) at {result.uri}")
        print(f"Model models:/{result.model_name}/{result.model_version}")
    return 0


if __name__ == "__main__":
    quicken()
    sys.exit(main())
