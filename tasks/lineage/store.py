"""What MLflow holds of a model: versions, runs and their files, from a database here or from a server.

MLflow is loaded when a store is opened and not before: it takes seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.lineage.chain import TrackedRun, Version
from tasks.tracking.registry import local_path
from tasks.tracking.store import StoreError, connect, patient, resolve_uri, shown, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

_T = TypeVar("_T")
_UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Store | None]:
    """The store of MLFLOW_TRACKING_URI or of `mlflow/`; None where that was never written to.

    Raises StoreError within seconds when it does not answer, at its opening or later in the block.
    """
    uri = resolve_uri(root)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        yield None
        return
    with patient():
        try:
            client = connect(uri)
        except Exception as error:  # whatever a store or its driver raises
            raise _silent(uri, error) from None
        from mlflow.exceptions import MlflowException

        try:
            yield Store(uri, client)
        except MlflowException as error:
            raise _silent(uri, error) from None


def _silent(uri: str, error: Exception) -> StoreError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return StoreError(f"MLflow at {shown(uri)} does not answer ({reason}); start it, or correct MLFLOW_TRACKING_URI.")


@dataclass(frozen=True)
class Store:
    """Reads from one MLflow; nothing here writes to it."""

    uri: str
    client: MlflowClient

    def version(self, name: str, number: str) -> Version | None:
        """This version of a registered model, or None."""
        return _or_none(lambda: _version(self.client.get_model_version(name, number)))

    def aliased(self, name: str, alias: str) -> Version | None:
        """The version that has this alias, or None."""
        found = _or_none(lambda: self.client.get_model_version_by_alias(name, alias))
        return self.version(name, str(found.version)) if found else None

    def numbers(self, name: str) -> list[str]:
        """The versions of a registered model, newest first; [] where there is none of this name."""
        found = _or_none(lambda: self.client.search_model_versions(f"name = {_quoted(name)}"))
        return sorted((str(version.version) for version in found or ()), key=int, reverse=True)

    def models(self) -> list[str]:
        """The names of all registered models."""
        return [str(model.name) for model in self.client.search_registered_models(max_results=1000)]

    def run(self, run_id: str) -> TrackedRun | None:
        """The run of this id, a deleted one too, or None."""
        return _or_none(lambda: _run(self.client.get_run(run_id)))

    def runs(self, key: str = "", comparison: str = "=", value: str = "") -> list[TrackedRun]:
        """Runs whose `key`, such as attributes.run_name, compares so with `value`; all without a key. Newest first."""
        condition = f"{key} {comparison} {_quoted(value)}" if key else ""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        order = ["attributes.start_time DESC"]
        found: Any = _or_none(lambda: self.client.search_runs(experiments, condition, order_by=order, max_results=1000))
        return [_run(run) for run in found or []]

    def read(self, uri: str, path: str, into: Path) -> bytes | None:
        """The bytes of a file below an artefact URI, or None. `into` is a folder for what must be downloaded."""
        file = self.file(uri, path, into)
        return file.read_bytes() if file is not None else None

    def file(self, uri: str, path: str, into: Path) -> Path | None:
        """A file below an artefact URI: itself where it is on this disk, else its download in `into`."""
        local = local_path(uri)
        if local is not None:
            return local / path if (local / path).is_file() else None
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            file = download_artifacts(f"{uri}/{path}", dst_path=str(into), tracking_uri=self.uri)
        except (MlflowException, OSError):  # what it raises for an absent file depends on the kind of store
            return None
        return Path(file)

    def files(self, uri: str, folder: str = "") -> dict[str, int]:
        """Every file below an artefact URI, by path: its size."""
        local = local_path(uri)
        if local is not None:
            found = sorted(path for path in (local / folder).rglob("*") if path.is_file())
            return {path.relative_to(local).as_posix(): path.stat().st_size for path in found}
        from mlflow.artifacts import list_artifacts

        sizes: dict[str, int] = {}
        for entry in list_artifacts(f"{uri}/{folder}".rstrip("/"), tracking_uri=self.uri):
            path = f"{folder}/{entry.path.rpartition('/')[2]}".lstrip("/")  # its own is relative to what was listed
            sizes |= self.files(uri, path) if entry.is_dir else {path: entry.file_size or 0}
        return sizes


def _or_none(ask: Callable[[], _T]) -> _T | None:
    """What MLflow answers, or None where it knows no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in _UNKNOWN:
            return None
        raise


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def _version(found: Any) -> Version:
    return Version(
        name=str(found.name),
        number=str(found.version),
        source=str(found.source),
        run_id=found.run_id or None,
        created=found.creation_timestamp,
        aliases=tuple(sorted(found.aliases or ())),
        tags=dict(found.tags),
    )


def _run(found: Any) -> TrackedRun:
    info = found.info
    return TrackedRun(
        id=str(info.run_id),
        name=str(info.run_name),
        status=str(info.status),
        experiment_id=str(info.experiment_id),
        artifacts=str(info.artifact_uri),
        started=info.start_time,
        ended=info.end_time,
        deleted=info.lifecycle_stage != "active",
        tags=dict(found.data.tags),
    )
