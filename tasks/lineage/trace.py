"""Follow the links from what was asked for down to the bytes, and read what each has recorded. Nothing is checked."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sparsekd.artifacts import MANIFEST, Manifest
from tasks.cache import cached_object, listed
from tasks.lineage.chain import Lineage, Lock, Origin, TrackedRun
from tasks.lineage.find import Found, find
from tasks.lineage.repository import CommitTree, Experiment, experiments, has_commit
from tasks.lineage.store import Store
from tasks.tracking.record import EXPERIMENT_TAG
from tasks.tracking.store import shown

LOCK_TAG, COMMIT_TAG, DIRTY_TAG = "dvc.lock.sha256", "git.commit", "git.dirty"


def trace(root: Path, asked: str, store: Store | None) -> Lineage:
    """The chain of the model, run or experiment called `asked`, in the checkout at `root`.

    Raises LineageError when there is none of that name.
    """
    found = find(root, asked, store)
    origin, notes = _origin(root, found)
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        lock = _lock(root, found.run, origin, store, into)
        logged = _logged(found.run, lock, store, into)
    return Lineage(
        asked=asked,
        root=root,
        uri=shown(store.uri) if store else None,
        version=found.version,
        run=found.run,
        origin=origin,
        lock=lock,
        manifests=dict(_manifests(root, lock, logged)),
        logged=logged,
        notes=(*found.notes, *notes),
    )


def manifest_name(out: str) -> str:
    """Where MLflow keeps the manifest of an output (tasks/tracking/record.py)."""
    return f"manifests/{out.removeprefix('data/').replace('/', '-')}.json"


def _origin(root: Path, found: Found) -> tuple[Origin, list[str]]:
    """Experiment and commits, and what is to be said about them."""
    tags = found.run.tags if found.run else {}
    name = found.experiment or tags.get(EXPERIMENT_TAG)
    same_name = [experiment for experiment in experiments(root) if experiment.name == name]
    recorded = tags.get(LOCK_TAG)
    kept = next((experiment for experiment in same_name if _is_of(root, experiment, recorded)), None)
    notes = []
    if same_name and kept is None:
        notes.append(f"The experiment {name} of this repository has another dvc.lock: a later run took its name.")
    commit = tags.get(COMMIT_TAG) or (kept.base if kept else None)
    dirty = {"true": True, "false": False}.get(tags.get(DIRTY_TAG, ""))
    here = commit is not None and has_commit(root, commit)
    return Origin(commit, here, dirty, name, kept.commit if kept else None), notes


def _is_of(root: Path, experiment: Experiment, recorded: str | None) -> bool:
    if recorded is None:
        return True
    text = CommitTree(root, experiment.commit).read("dvc.lock")
    return text is not None and hashlib.sha256(text).hexdigest() == recorded


def _lock(root: Path, run: TrackedRun | None, origin: Origin, store: Store | None, into: Path) -> Lock:
    """dvc.lock as the run stored it, else one that has the recorded hash."""
    recorded = run.tags.get(LOCK_TAG) if run else None
    if run and store and (text := store.read(run.artifacts, "dvc.lock", into)) is not None:
        return _parsed(text, f"artifact dvc.lock of run {run.id}", recorded)
    for place, text in _other_locks(root, origin, recorded):
        lock = _parsed(text, place, recorded)
        if recorded in (None, lock.sha256):
            return lock
    return Lock(None, f"artifact dvc.lock of run {run.id}" if run else "", recorded=recorded)


def _other_locks(root: Path, origin: Origin, recorded: str | None) -> Iterator[tuple[str, bytes]]:
    """Without a recorded hash only the experiment's own can be trusted to be of the run."""
    begun = origin.commit if origin.commit_here and recorded else None
    for commit in (origin.experiment_commit, begun):
        if commit and (text := CommitTree(root, commit).read("dvc.lock")) is not None:
            yield f"dvc.lock of commit {commit}", text
    if recorded and (root / "dvc.lock").is_file():
        yield "dvc.lock of this checkout", (root / "dvc.lock").read_bytes()


def _parsed(text: bytes, place: str, recorded: str | None) -> Lock:
    return Lock(text, place, hashlib.sha256(text).hexdigest(), recorded, _stages(text))


def _stages(text: bytes) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.lock; {} where it is none that we know."""
    try:
        stages = yaml.safe_load(text)["stages"]
        for stage in stages.values():
            for entry in [*stage.get("outs", []), *stage.get("deps", [])]:
                entry |= {"path": str(entry["path"]), "md5": str(entry["md5"]), "size": int(entry.get("size") or 0)}
        return dict(stages)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def _logged(run: TrackedRun | None, lock: Lock, store: Store | None, into: Path) -> dict[str, bytes]:
    """The manifests that the run has as artifacts, by output."""
    if run is None or store is None:
        return {}
    found = {out: store.read(run.artifacts, manifest_name(out), into) for out in lock.outs()}
    return {out: text for out, text in found.items() if text is not None}


def _manifests(root: Path, lock: Lock, logged: dict[str, bytes]) -> Iterator[tuple[str, Manifest]]:
    """The manifest of each output, from MLflow, else from DVC's cache; those that can be read."""
    for out, entry in lock.outs().items():
        manifest = read_manifest(logged.get(out)) or read_manifest(_cached_manifest(root, entry["md5"]))
        if manifest is not None:
            yield out, manifest


def _cached_manifest(root: Path, digest: str) -> bytes | None:
    try:
        return cached_object(root, listed(root, digest)[MANIFEST]).read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_manifest(text: bytes | None) -> Manifest | None:
    """The manifest in these bytes, None where they are none of ours."""
    if text is None:
        return None
    try:
        return Manifest.model_validate(json.loads(text))
    except ValueError:
        return None
