"""A finished run to log, with a database of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import copy_mlflow_database
from tests.traced_project import Traced, make_traced
from tests.tracked_project import REPOSITORY, Project, Server, closed_port

_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture(autouse=True)
def _no_store_of_the_process() -> Iterator[None]:
    """A test that sets MLflow's own URI, which MLflow also puts into the environment, leaves none to the next."""
    yield
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def _own_store(patch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says: the database of the checkout."""
    for name in _VARIABLES:
        patch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying it none."""
    root = tmp_path_factory.mktemp("database")
    copy_mlflow_database(root)
    return root / "mlflow" / "mlflow.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Traced:
    """A checkout with two finished runs: making it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        _own_store(patch)
        return make_traced(tmp_path_factory.mktemp("traced") / "a checkout", empty_database)


@pytest.fixture
def traced(made: Traced, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """The checkout that commands of this process work in. No test leaves it changed."""
    _own_store(monkeypatch)
    monkeypatch.setenv("SPARSEKD_HOME", str(made.root))
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Project:
    _own_store(monkeypatch)
    root = tmp_path / "a checkout"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copy(empty_database, root / "mlflow")
    project = Project(root)
    project.run()
    return project


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server, over the database of a checkout in which nothing has run."""
    root = tmp_path_factory.mktemp("served") / "a checkout"
    root.mkdir()
    copy_mlflow_database(root)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copy(REPOSITORY / "mlflow/server.env", root / "mlflow")
    port = closed_port()
    line = [str(Path(sys.executable).with_name("mlflow")), "--env-file", "mlflow/server.env", "server"]
    environment = {**os.environ, "MLFLOW_PORT": str(port)}
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(line, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(port, process, root / "server.log")
            yield Server(f"http://127.0.0.1:{port}", Project(root))
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())
