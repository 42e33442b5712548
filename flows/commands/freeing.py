"""`sparsekd gc`: free what nothing needs any more, after saying what that is.

Kept is what the checkout, a branch, a tag or an experiment names. A registered model has bytes of its own in MLflow's
files, so nothing here can take them away.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows.checks.preflight import gigabytes
from flows.commands.display import make_console
from flows.settings import params
from flows.workspaces import workspace
from flows.workspaces.commands import dvc, git
from flows.workspaces.lock import current_holder, run_lock
from flows.workspaces.workspace import Workspace, experiments, left_behind, workspaces
from sparsekd.errors import ConfigError, StageError
from tasks import environment
from tasks.cache import listed, objects_directory
from tasks.state import FOLDER

_DAYS = 7
"""So long an interrupted distillation may wait, and the files of an evaluation, which MLflow has too, are at hand."""


@dataclass(frozen=True)
class Unneeded:
    """What can go: objects of DVC's cache, workspaces of killed runs, old checkpoints and evaluations, deleted runs."""

    objects: list[Path]
    workspaces: list[Workspace]
    checkpoints: list[Path]
    evaluations: list[Path]
    deleted_runs: list[Path]


def gc(drop: Sequence[str] = (), yes: bool = False) -> None:
    """Say what would be freed, and with `yes` free it; runs in `drop` are given up with it.

    Raises ConfigError for an unknown run in `drop`, StageError while a run is going on.
    """
    home = params.find_root()
    console = make_console()
    unknown = [name for name in drop if name not in experiments(home)]
    if unknown:
        raise ConfigError(f"There is no experiment {unknown[0]!r}; `sparsekd runs` lists them.")
    with run_lock(home):
        _refuse_while_running(home)
        found = unneeded(home, drop)
        for label, paths in (
            ("DVC objects that nothing names", found.objects),
            ("workspaces of killed runs", [space.path for space in found.workspaces]),
            (f"checkpoints older than {_DAYS} days", found.checkpoints),
            (f"evaluations older than {_DAYS} days", found.evaluations),
            ("files of runs deleted in MLflow", found.deleted_runs),
        ):
            console.print(f"{label:<32} {len(paths):>6}  {gigabytes(sum(map(_size, paths))):>10}", markup=False)
        if drop:
            console.print(f"runs given up: {', '.join(drop)}", markup=False)
        if not yes:
            console.print("Nothing was removed. Add --yes to do it.")
            return
        _free(home, found, drop)
        console.print("Freed.")


def unneeded(home: Path, drop: Iterable[str] = ()) -> Unneeded:
    """What nothing needs if the runs in `drop` are given up."""
    needed = _needed(home, set(drop))
    files = objects_directory(home)
    objects = [path for path in sorted(files.glob("*/*")) if path.parent.name + path.name not in needed]
    old = time.time() - _DAYS * 86400
    return Unneeded(
        objects,
        left_behind(home),
        [path for path in sorted((home / ".checkpoints").glob("*/*")) if path.stat().st_mtime < old],
        [path for path in sorted((home / FOLDER / "evaluations").glob("*")) if path.stat().st_mtime < old],
        _deleted_runs(home),
    )


def _refuse_while_running(home: Path) -> None:
    running = [space.name for space in workspaces(home) if current_holder(space.path) is not None]
    if running:
        raise StageError(
            f"Run {running[0]} is going on, and what it has made is not recorded yet; gc when it has ended."
        )


def _needed(home: Path, drop: set[str]) -> set[str]:
    """Hashes of every object that DVC's files name, dvc.lock and `*.dvc`, of checkout, branches, tags, experiments."""
    heads = git(home, "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags", "refs/remotes").split()
    kept = [revision.overlay for name, revision in experiments(home).items() if name not in drop]
    blobs = {blob for commit in {*heads, *kept} if commit for blob in _dvc_files(home, commit)}
    texts = [git(home, "cat-file", "blob", blob) for blob in sorted(blobs)]
    for path in git(home, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if _names_objects(path):
            with contextlib.suppress(OSError):
                texts.append((home / path).read_text())
    needed: set[str] = set()
    for text in texts:
        values = yaml.safe_load(text) or {}
        for entry in (values, *(values.get("stages") or {}).values()):
            needed |= {out["md5"] for out in entry.get("outs") or [] if "md5" in out}
    for digest in [digest for digest in needed if digest.endswith(".dir")]:
        with contextlib.suppress(OSError, ValueError):
            needed |= set(listed(home, digest).values())
    return needed


def _dvc_files(home: Path, commit: str) -> list[str]:
    """Git's hashes of the files in `commit` that name objects; most commits share most of them."""
    with contextlib.suppress(StageError):  # a tag of something that is no commit
        entries = [entry.partition("\t") for entry in git(home, "ls-tree", "-r", "-z", commit).split("\0")]
        return [about.split()[2] for about, _, path in entries if _names_objects(path)]
    return []


def _names_objects(path: str) -> bool:
    """Whether a file of the repository is one of those in which DVC writes hashes of objects."""
    return path == "dvc.lock" or path.endswith("/dvc.lock") or path.endswith(".dvc")


def _deleted_runs(home: Path) -> list[Path]:
    """Artefact folders of runs that were deleted in MLflow's own database."""
    if not (home / "mlflow" / "mlflow.db").is_file():
        return []
    environment.apply(home)
    from mlflow.entities import ViewType

    from tasks.tracking.registry import local_path
    from tasks.tracking.store import connect, create_database

    client = connect(create_database(home))
    known = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
    deleted = client.search_runs(known, run_view_type=ViewType.DELETED_ONLY, max_results=10_000)
    paths = [local_path(run.info.artifact_uri) for run in deleted]
    return [path for path in paths if path is not None and path.exists()]


def _free(home: Path, found: Unneeded, drop: Sequence[str]) -> None:
    for space in found.workspaces:
        workspace.remove(space)
    for path in (*found.checkpoints, *found.evaluations, *found.deleted_runs):
        shutil.rmtree(path, ignore_errors=True)
    if drop:
        dvc(home, "exp", "remove", *drop)
    for name in drop:
        shutil.rmtree(home / FOLDER / "runs" / name, ignore_errors=True)
    dvc(home, "gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments", "--force")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
