"""A finished run to log, with a database of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.tracking.store import connect
from tests.tracked_project import REPOSITORY, Project


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Project:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "a checkout"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copy(empty_database, root / "mlflow")
    project = Project(root)
    project.run()
    return project
