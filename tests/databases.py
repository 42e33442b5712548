"""Databases of Prefect and MLflow that are made once a machine and copied: each takes seconds to make."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tasks.tracking.store import create_database


def copy_prefect_database(root: Path) -> None:
    """Put an empty one where a Prefect server of the checkout at `root` has its own."""
    (root / ".prefect").mkdir(parents=True, exist_ok=True)
    shutil.copy(_made_once("prefect", _migrate), root / ".prefect" / "prefect.db")


def copy_mlflow_database(root: Path) -> None:
    """Put an empty one where the checkout at `root` has its own."""
    (root / "mlflow").mkdir(exist_ok=True)
    shutil.copy(_made_once("mlflow", _create), root / "mlflow" / "mlflow.db")


def _create(folder: Path) -> Path:
    create_database(folder)
    return folder / "mlflow" / "mlflow.db"


def _migrate(folder: Path) -> Path:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env=clean | {"PREFECT_HOME": str(folder)}, check=True, capture_output=True)
    return folder / "prefect.db"


def _made_once(package: str, make: Callable[[Path], Path]) -> Path:
    kept = Path(tempfile.gettempdir()) / f"sparsekd-tests-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    assert kept.stat().st_uid == os.getuid()
    database = kept / f"{package}-{importlib.metadata.version(package)}.db"
    with FileLock(kept / "lock"):
        if not database.exists():
            with tempfile.TemporaryDirectory(dir=kept) as folder:
                os.replace(make(Path(folder)), database)
    return database
