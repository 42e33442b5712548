"""What this checkout remembers of its runs, `.sparsekd/runs/<name>/run.json`, beside the experiments in git.

The experiment is the durable record: it goes where the repository goes. This adds what git does not hold: how a run
ended, how long it took, and where MLflow and Prefect have it.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flows.settings.params import load_tree
from flows.settings.params_text import plain
from flows.workspaces.commands import git
from flows.workspaces.workspace import Workspace, experiments
from sparsekd.config import RunConfig
from sparsekd.errors import SparseKDError
from tasks.state import FOLDER, read_json, write_json

State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class RunRecord:
    """One run. Times are seconds since the epoch; `result` is the report's metrics.json; `commit` where it started."""

    name: str
    model: str
    width: float | None
    started: float
    state: State = "running"
    ended: float | None = None
    commit: str | None = None
    reason: str | None = None
    flow_run_id: str | None = None
    mlflow_run_id: str | None = None
    gate: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    """How each stage went: computed, unchanged or restored."""
    texts: dict[str, str] = field(default_factory=dict)
    """Its text sources with the revision of each."""
    budget: str | None = None
    """What stands in the place of the width, such as total_reduction=0.2."""

    def write(self, home: Path) -> None:
        """Replace the record of this run."""
        write_json(folder(home, self.name) / "run.json", asdict(self))

    def end(self, home: Path, state: State, **values: Any) -> RunRecord:
        """Write the record of the ended run, and return it."""
        ended = replace(self, state=state, ended=time.time(), **values)
        ended.write(home)
        return ended


def new_name(home: Path, config: RunConfig) -> str:
    """A name that tells model, width and time, and that no run or experiment has yet."""
    source = re.sub(r"^(file|hf):", "", config.model.source).rstrip("/").rpartition("/")[2]
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")[:40] or "model"
    key, value = config.prune.budget
    base = f"{model}-{'w' if key == 'width' else f'{key}-'}{plain(value)}-{time.strftime('%m%d-%H%M%S')}"
    taken = set(experiments(home)) | {path.name for path in folder(home, "").glob("*")}
    for number in itertools.count(1):
        name = base if number == 1 else f"{base}-{number}"
        if name not in taken:
            with contextlib.suppress(FileExistsError):  # another run that starts in this second
                folder(home, name).mkdir(parents=True)
                return name
    raise AssertionError("unreachable")


def record_of(name: str, config: RunConfig, started: float) -> RunRecord:
    """The record of a run that has just started from a settled configuration."""
    key, value = config.prune.budget
    budget = None if key == "width" else f"{key}={plain(value)}"
    return RunRecord(name, config.model.source, config.prune.width, started, texts=texts_of(config), budget=budget)


def keep_logs(space: Workspace) -> None:
    """Copy the stages' logs of a run beside its record: its workspace goes."""
    with contextlib.suppress(OSError):
        target = folder(space.home, space.name) / "logs"
        shutil.copytree(space.path / FOLDER / "logs", target, dirs_exist_ok=True)


def runs(home: Path) -> list[RunRecord]:
    """All runs, newest first: those that this checkout remembers, and experiments that came with the repository."""
    found = {path.parent.name: record for path in folder(home, "").glob("*/run.json") if (record := _read(path))}
    for name, revision in experiments(home).items():
        if name not in found and (record := _from_experiment(home, name, revision.tree)):
            found[name] = record
    return sorted(found.values(), key=lambda record: record.started, reverse=True)


def texts_of(config: RunConfig) -> dict[str, str]:
    """The text sources of a settled configuration with their revisions."""
    return dict(zip(config.texts.sources, config.texts.revisions or (), strict=False))


def used_texts(home: Path) -> dict[str, dict[str, str]]:
    """Text sources and revisions of every run, newest run first; of one noted before they were, from its experiment."""
    kept = experiments(home)
    found = {}
    for record in runs(home):
        told = record
        if not record.texts and record.name in kept:
            told = _from_experiment(home, record.name, kept[record.name].tree) or record
        found[record.name] = told.texts
    return found


def _from_experiment(home: Path, name: str, commit: str) -> RunRecord | None:
    try:
        config = load_tree(home, commit, name)
        when = float(git(home, "show", "--no-patch", "--format=%ct", commit))
    except SparseKDError:  # an experiment of something else, or of an older format
        return None
    return replace(record_of(name, config, when), state="done", ended=when)


def _read(path: Path) -> RunRecord | None:
    values = read_json(path)
    with contextlib.suppress(TypeError):
        return RunRecord(**values) if isinstance(values, dict) else None
    return None


def folder(home: Path, name: str) -> Path:
    """What is kept of the run `name` beside its experiment: run.json, logs, changes."""
    return home / FOLDER / "runs" / name
