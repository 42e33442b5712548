"""Prefect's and MLflow's databases in PostgreSQL, the setting for a team: Debian's server, here on 127.0.0.1."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.server.servers import answers, free_port, start_prefect
from tests.e2e.test_flow import LAUNCH
from tests.miniature import make_miniature, started, wait_until
from tests.prefect_api import ask
from tests.tracked_project import REPOSITORY, Project, command, runs, versions

pytestmark = pytest.mark.slow


def _binary(name: str) -> str | None:
    """Debian leaves most of them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


INITDB, POSTGRES = _binary("initdb"), _binary("postgres")
USER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root; Debian's package makes this user."""


def _why_not() -> str | None:
    if not (INITDB and POSTGRES):
        return "needs initdb and postgres (Debian: postgresql)"
    if USER and USER not in {entry.pw_name for entry in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


SERVER = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""As mlflow/server.env has it."""
skip = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """`user@host:port` of a fresh server with the databases `prefect` and `mlflow`."""
    import psycopg

    folder = Path(tempfile.mkdtemp(prefix="sparsekd-postgres-"))
    if USER:
        shutil.chown(folder, USER)
    port, data = free_port(), str(folder / "data")
    quietly = {"cwd": "/", "user": USER, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.run(
        [str(INITDB), "--pgdata", data, "--username", "sparsekd", "--auth", "trust", "--no-sync", "--encoding", "UTF8"],
        check=True,
        **quietly,  # type: ignore[call-overload]
    )
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    server = subprocess.Popen(
        [str(POSTGRES), "-D", data, "-p", str(port), *settings],
        stderr=subprocess.DEVNULL,
        **quietly,  # type: ignore[call-overload]
    )
    try:
        where = f"sparsekd@127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(f"postgresql://{where}/postgres", autocommit=True) as connection:
                    for name in ("prefect", "mlflow"):
                        connection.execute(f"CREATE DATABASE {name}".encode())
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield where
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@skip
def test_prefect_records_a_run_and_takes_many_requests_at_once(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini = make_miniature(tmp_path / "checkout")
    (mini.root / ".prefect" / "prefect.db").unlink()
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://{database}/prefect")
    server = start_prefect(mini.root, free_port(), ui=False)
    try:
        server.wait_until_ready("/api/health")
        api = f"{server.url}/api"
        with started(mini, LAUNCH, PREFECT_API_URL=api) as process:
            output, _ = process.communicate()
        assert output.startswith("outcome"), output
        [run] = ask(api, "flow_runs/filter", {})
        assert run["state_name"] == "Completed"
        with ThreadPoolExecutor(20) as pool:  # SQLite answers 503 to most of these; here each is the first attempt
            created = list(pool.map(lambda n: _create_run(api, run["flow_id"], n), range(20)))
        assert len(set(created)) == 20
    finally:
        server.end()
    assert not (mini.root / ".prefect" / "prefect.db").exists()


@skip
def test_mlflow_records_a_run_and_its_model(database: str, tmp_path: Path) -> None:
    """As docs/machines.md has it: a server over PostgreSQL, with a place for files that is not the worker's."""
    root = tmp_path / "a checkout"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    project = Project(root)
    project.run()
    port, files = free_port(), tmp_path / "files"
    store = f"postgresql+psycopg://{database}/mlflow"
    arguments = ["--backend-store-uri", store, "--artifacts-destination", str(files), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, **SERVER},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{uri}/health"), "the MLflow server to answer", 90)
        process = command(root, "--uri", uri)
        output = process.communicate(timeout=110)
        assert process.returncode == 0, output
        assert len(runs(uri)) == 1
        [version] = versions(uri)
        assert int(version.version) == 1
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert list(files.rglob("model.safetensors")), "the model is where every machine finds it"
    assert not (root / "mlflow" / "mlflow.db").exists()


def _create_run(api: str, flow: str, number: int) -> str:
    body = json.dumps({"flow_id": flow, "name": f"run-{number}", "state": {"type": "PENDING"}}).encode()
    request = urllib.request.Request(f"{api}/flow_runs/", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        return str(json.load(response)["id"])
