"""`sparsekd restore`: the bytes of a run, from DVC's cache."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from flows.commands.display import duration, make_console
from flows.settings import params, versions
from flows.workspaces.commands import dvc, git
from flows.workspaces.lock import run_lock
from flows.workspaces.workspace import experiments
from sparsekd.artifacts import Artifact
from sparsekd.errors import ArtifactError, ConfigError, StageError
from tasks.cache import dvc_objects
from tasks.state import FOLDER

_SHIPPED = {"data/distilled": "", "data/report": "report"}
"""What `--out` gets: the checkpoint itself, and the report below it."""


def restore(name: str, out: Path | None = None) -> None:
    """Bring back run `name` into the checkout's data/, or its checkpoint and report alone into `out`.

    Raises ConfigError for an unknown run or an `out` that is there, ArtifactError where the cache lacks its bytes.
    """
    home = params.find_root()
    found = experiments(home).get(name)
    if found is None or found.overlay is None:
        raise ConfigError(f"There is no experiment {name!r}; `sparsekd runs` lists them.")
    console, begun = make_console(), time.monotonic()
    if out is not None:
        _write_out(home, found.overlay, out.absolute())
        console.print(f"{name} is in {out} ({duration(time.monotonic() - begun)}).", markup=False, soft_wrap=True)
        return
    with run_lock(home):
        kept = _switch(home, found.overlay)
    console.print(
        f"params.yaml, dvc.lock and data/ are those of {name} ({duration(time.monotonic() - begun)}).\n"
        f"The params.yaml that was here is {kept.relative_to(home)}.",
        markup=False,
        soft_wrap=True,
    )


def _switch(home: Path, commit: str) -> Path:
    """Put the run's params.yaml and dvc.lock in place and let DVC check out what they stand for."""
    before = home / FOLDER / "params.before-restore.yaml"
    shutil.copyfile(home / "params.yaml", before)
    git(home, "restore", f"--source={commit}", "--worktree", "--", "params.yaml", "dvc.lock")
    versions.bring_recorded(home, commit)
    try:
        dvc(home, "checkout", "--force", "dvc.yaml")  # what the stages made: corpora are read from the cache
    except StageError as error:
        raise ArtifactError(
            f"DVC's cache lacks some of the run's bytes ({error}). Fetch them with `dvc pull`, or compute them with "
            "`sparsekd compress`."
        ) from None
    return before


def _write_out(home: Path, commit: str, out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} is there already; name a new directory.")
    lock = git(home, "show", f"{commit}:dvc.lock")
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        for source, folder in _SHIPPED.items():
            objects = dvc_objects(home, source, lock)
            for name, path in objects.items():
                target = partial / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            if not objects:
                raise ArtifactError(f"DVC's cache lacks {source} of this run; fetch it with `dvc pull`.")
            Artifact.read(partial / folder)  # every byte, against its manifest
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
