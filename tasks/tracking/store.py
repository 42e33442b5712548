"""Where runs are logged, and how long we wait for it: a store that is down costs seconds, not minutes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparsekd.errors import SparseKDError
from tasks.state import FOLDER

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "sparsekd"
_SECONDS = 5
_ENVIRONMENT = {
    # One retry and 10 s a call. MLflow's own defaults block each call for 247 s when a server is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


class StoreError(SparseKDError):
    """The tracking store cannot be used now."""


@contextlib.contextmanager
def patient(**more: str) -> Iterator[None]:
    """Short time-outs and no telemetry inside; what the user set in the environment wins."""
    added = {name: value for name, value in (_ENVIRONMENT | more).items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def uploading(folder: Path) -> Iterator[None]:
    """Time for a store to answer after it was sent the largest file of `folder`, at 20 MB/s; no retry."""
    largest = max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)
    seconds = str(30 + largest // 20_000_000)
    before = {name: os.environ.get(name) for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")}
    ours = all(before[name] in (None, _ENVIRONMENT[name]) for name in before)
    if ours:
        os.environ.update({"MLFLOW_HTTP_REQUEST_TIMEOUT": seconds, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value


def resolve_uri(root: Path, uri: str | None = None) -> str:
    """The tracking URI: the argument, MLFLOW_TRACKING_URI, or the database in `mlflow/`, always absolute."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or _own_database(root)


def _own_database(root: Path) -> str:
    return f"sqlite:///{root.resolve() / 'mlflow' / 'mlflow.db'}"


def shown(uri: str) -> str:
    """`uri` without the password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers. Raises StoreError within seconds when it does not."""
    _probe(uri)
    from mlflow import MlflowClient

    with _creation_lock(uri):  # the client creates the database, and two processes that do so at once crash
        # The registry must be named: a client otherwise takes the process's global one, not this tracking URI.
        client = MlflowClient(uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def opened(home: Path, uri: str | None = None) -> Iterator[tuple[MlflowClient, str]]:
    """The store of the checkout at `home`, and its experiment's id; one process of the checkout at a time."""
    uri = resolve_uri(home, uri)
    with patient(), locked(home / FOLDER / "track.lock"):
        client = connect(uri)
        yield client, experiment_id(client, uri)


def create_database(root: Path) -> str:
    """Create `mlflow/mlflow.db` if it is not there, and return its URI. For `sparsekd serve`, before its server."""
    uri = _own_database(root)
    with patient():
        connect(uri)
    return uri


def experiment_id(client: MlflowClient, uri: str) -> str:
    """The experiment MLFLOW_EXPERIMENT_NAME, by default `sparsekd`; created at need.

    With a SQLite database its artefacts go to `artifacts/` beside it, by an absolute URI; else where the server says.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(uri)
        location = (database.absolute().parent / "artifacts").as_uri() if database else None
        return str(client.create_experiment(name, location))
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"MLflow's experiment {name!r} is deleted; restore it in the UI or set MLFLOW_EXPERIMENT_NAME to another."
        )
    return str(found.experiment_id)


def _probe(uri: str) -> None:
    """Ask once, briefly, before MLflow does: it retries a dead server or database for minutes."""
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS)  # any answer will do
        except requests.RequestException as error:
            raise StoreError(_reason(error)) from None
    elif re.match(r"(sqlite|postgresql|mysql|mssql)[+:]", uri):
        _probe_database(uri)


def _probe_database(uri: str) -> None:
    import sqlalchemy

    path = sqlite_path(uri)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        waits = {} if path is not None or uri.startswith("mssql") else {"connect_timeout": _SECONDS}
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=waits)
        sqlalchemy.inspect(engine).get_table_names()
    except (OSError, ImportError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise StoreError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """The innermost cause in a few words: requests and sqlalchemy wrap it several times."""
    cause: BaseException = error
    while wrapped := [
        e
        for e in (*cause.args, *(getattr(cause, name, None) for name in ("reason", "orig")))
        if isinstance(e, BaseException) and e is not cause
    ]:
        cause = wrapped[0]
    return " ".join(str(cause).split())[:160] or type(cause).__name__


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI, else None."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _creation_lock(uri: str) -> Iterator[None]:
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    with locked(path.with_name(f"{path.name}.lock")):
        yield


@contextlib.contextmanager
def locked(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold an exclusive lock on `path`. Raises StoreError when another process keeps it longer than `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"another process has held {path} for {seconds:.0f} s") from None
                time.sleep(0.05)
        yield
