"""Outages: a compression that is done does not fail for its record, and the record is not lost."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from typing import Any

import pytest

from tasks.track import track
from tasks.tracking import pending, registry
from tasks.tracking.record import collect
from tests.tracked_project import Project, client, closed_port, runs, stored

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's, at its import


def test_a_server_that_is_down_costs_a_warning_and_loses_nothing(project: Project) -> None:
    import mlflow  # noqa: F401 - its import is not what is timed

    started = time.monotonic()
    lost = track(project.root, "flow-1", f"http://name:secret@127.0.0.1:{closed_port()}", {"prune": 1.0})
    assert time.monotonic() - started < 5
    assert lost.run_id is None
    assert lost.model_version is None
    assert "onnection refused" in (lost.warning or "")
    assert "secret" not in f"{lost}"
    waiting = json.loads(project.marker.read_text())
    assert waiting["pending"][0]["id"] == collect(project.root, "flow-1").id

    project.run(width=0.5, weights=b"next")  # the next run replaces everything in data/
    result = track(project.root, "flow-2")

    assert result.warning is None
    assert not project.marker.exists()
    assert not pending.waiting(project.root)
    found = {run.data.tags["prefect.flow_run_id"]: run for run in runs(project.database)}
    assert set(found) == {"flow-1", "flow-2"}
    assert found["flow-1"].data.params["prune.width"] == "0.75"
    assert found["flow-1"].data.metrics["seconds/prune"] == 1.0
    assert (stored(project.database, "1") / "model.safetensors").read_bytes() == b"weights"
    assert (stored(project.database, "2") / "model.safetensors").read_bytes() == b"next"


def test_a_server_that_hangs_costs_seconds(project: Project) -> None:
    import mlflow  # noqa: F401

    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        result = track(project.root, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 10
    assert result.run_id is None
    assert project.marker.exists()


@pytest.mark.parametrize("blocked", ["file", "garbage"])
def test_a_database_that_cannot_be_used_costs_seconds(project: Project, blocked: str) -> None:
    import mlflow  # noqa: F401

    folder = project.root / "mlflow"
    shutil.rmtree(folder)
    if blocked == "file":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(b"no database at all" * 100)
    started = time.monotonic()
    result = track(project.root)
    assert time.monotonic() - started < 5
    assert result.run_id is None
    assert result.warning
    assert project.marker.exists()


@pytest.mark.parametrize("kind", [ConnectionError, KeyboardInterrupt])
def test_an_interruption_in_the_middle_is_completed_without_doubles(
    project: Project, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """A server that goes away, and a kill: everything but the model is logged when it happens."""

    def gone(*_: Any) -> None:
        raise kind("gone")

    monkeypatch.setattr(registry, "register", gone)
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            track(project.root)
    else:
        assert track(project.root).run_id is None
        assert runs(project.database)[0].info.status == "FAILED"
    monkeypatch.undo()
    project.run(width=0.5, weights=b"next")
    track(project.root)

    found = {run.data.params["prune.width"]: run for run in runs(project.database)}
    assert len(runs(project.database)) == 2
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    history = client(project.database).get_metric_history(found["0.75"].info.run_id, "train/loss")
    assert [point.step for point in history] == [0, 1, 2]
    assert (stored(project.database, "1") / "model.safetensors").read_bytes() == b"weights"


def test_one_bad_record_keeps_nothing_else_from_being_logged(project: Project) -> None:
    bad = pending.pending_folder(project.root) / "bad"
    bad.mkdir(parents=True)
    (bad / "record.json").write_text("{}")
    result = track(project.root)
    assert result.run_id is not None
    assert "bad" in (result.warning or "")


def test_the_environment_is_left_as_it_was(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    track(project.root)
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")} == before
