"""Runs that are not logged yet: each a self-contained folder, so that later runs may replace everything in `data/`.

`.sparsekd/pending-track/<id>/` holds record.json, `artifacts/` and the model's bytes under `model/`;
`.sparsekd/pending-track.json` lists them for people and other tools. A run is written here before MLflow is asked for
anything, and removed when MLflow has all of it: a kill in between costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from tasks.cache import dvc_objects
from tasks.state import FOLDER, write_json
from tasks.tracking.links import place
from tasks.tracking.record import MODEL, Record


def marker_path(root: Path) -> Path:
    """`.sparsekd/pending-track.json`; it is there only while a run waits."""
    return root / FOLDER / "pending-track.json"


def pending_folder(root: Path) -> Path:
    """`.sparsekd/pending-track/`."""
    return root / FOLDER / "pending-track"


def keep(home: Path, record: Record, root: Path, with_model: bool = True) -> Path:
    """Write `record` and every file of `root` that it names below `.sparsekd/` of `home`, and return its folder.

    One that is there stays.
    """
    folder = pending_folder(home) / record.id
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{record.id}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for target, source in record.artifacts.items():
            path = partial / "artifacts" / target
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / source, path)
        if with_model:
            _keep_model(root, record, partial / "model")
        (partial / "record.json").write_text(record.to_json())
        with contextlib.suppress(FileExistsError):  # another process kept the same run meanwhile
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _keep_model(root: Path, record: Record, folder: Path) -> None:
    """The layout of mlflow.transformers: the checkpoint in `model/`, its tokenizer again in `components/tokenizer/`."""
    objects = dvc_objects(root, MODEL)
    for name, digest in record.model.files.items():
        places = [folder / "model" / name]
        if ".safetensors" not in name:  # config.json too: it decides which tokenizer class AutoTokenizer takes
            places.append(folder / "components" / "tokenizer" / name)
        for target in places:
            place(root / MODEL / name, target, digest, objects.get(name))
    card = root / "data/report/README.md"
    if card.is_file():  # the report's card, not the short one of distill, goes out with the model
        for path in (folder / "README.md", folder / "model" / "README.md"):
            shutil.copyfile(card, path)


def waiting(root: Path) -> list[Path]:
    """The folders that wait, oldest first."""
    folder = pending_folder(root)
    found = [p for p in folder.iterdir() if (p / "record.json").is_file()] if folder.is_dir() else []
    return sorted((p for p in found if p.suffix != ".partial"), key=lambda p: (p / "record.json").stat().st_mtime)


def sweep(root: Path) -> None:
    """Remove what a killed process left half written more than an hour ago."""
    folder = pending_folder(root)
    for partial in folder.glob("*.partial") if folder.is_dir() else ():
        if time.time() - partial.stat().st_mtime > 3600:
            shutil.rmtree(partial, ignore_errors=True)


def read(folder: Path) -> Record:
    """The record that `keep` wrote."""
    return Record.from_json((folder / "record.json").read_text())


def drop(root: Path, folder: Path) -> None:
    """MLflow has it: remove the folder, and the marker with the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    mark(root, None)


def mark(root: Path, reason: str | None) -> None:
    """Rewrite the marker so that it lists what waits, or remove it when nothing does."""
    folders = waiting(root)
    if not folders:
        marker_path(root).unlink(missing_ok=True)
        return
    runs = []
    for folder in folders:
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime((folder / "record.json").stat().st_mtime))
        runs.append({"id": folder.name, "since": since, "folder": str(folder.relative_to(root))})
    write_json(marker_path(root), {"pending": runs, "reason": reason, "next": "python -m tasks.track"})
