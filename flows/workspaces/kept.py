"""What kept runs hold, read from git and DVC's cache without restoring them: configuration and report."""

from __future__ import annotations

from pathlib import Path

from flows.settings import params
from flows.settings.params import load_tree
from flows.workspaces.commands import git
from flows.workspaces.history import RunRecord, runs
from flows.workspaces.workspace import experiments
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.report.summary import Summary, read_summary
from tasks.cache import dvc_objects


def kept_runs(home: Path) -> list[RunRecord]:
    """Runs that ended well and are experiments still, newest first."""
    kept = experiments(home)
    return [record for record in runs(home) if record.state == "done" and record.name in kept]


def kept_config(home: Path, name: str) -> RunConfig | None:
    """What the experiment `name` was made from; None where its params.yaml is of another version of sparsekd."""
    try:
        return load_tree(home, experiments(home)[name].tree, name)
    except ConfigError:
        return None


def kept_summary(home: Path, name: str) -> Summary | None:
    """What the experiment `name` reported; None where the cache has it no more, or it has no report."""
    lock = git(home, "show", f"{experiments(home)[name].tree}:dvc.lock")
    files = dvc_objects(home, "data/report", lock)
    return read_summary(files["summary.json"]) if "summary.json" in files else None


def same_values(home: Path, one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations compute the same: all but the name of the preset that they started from.

    A path may be written from the checkout at `home` or in full: a run that works elsewhere needs it in full.
    """
    first, second = (params.in_full(config, home).model_copy(update={"preset": ""}) for config in (one, other))
    return first == second
