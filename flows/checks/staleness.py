"""Which stages a run would compute, without importing DVC: it is asked in a process of its own (1 s)."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsekd.errors import ConfigError, StageError
from tasks.environment import dvc_command, settings
from tasks.graph import StageSpec, downstream_closure, read_graph
from tasks.process import select
from tasks.tracking.pending import marker_path


@dataclass(frozen=True)
class Staleness:
    """What is out of date: stages with their own reason, and all that follow from them."""

    reasons: dict[str, str]
    stages: tuple[str, ...]
    untracked: bool = False

    @property
    def nothing_to_do(self) -> bool:
        return not self.stages and not self.untracked


def staleness(root: Path, values: dict[str, Any]) -> Staleness:
    """What `dvc repro` would visit if params.yaml held `values`, whatever it holds now.

    Parameters are compared with dvc.lock here, everything else is what `dvc status` says. An output that is gone from
    the disk is stale too. `untracked` says that a finished run still waits to be logged to MLflow.
    """
    if not (root / ".dvc").is_dir():
        raise ConfigError(f"{root} has no .dvc directory; get it back with `git checkout .dvc`, or run `dvc init`.")
    graph = read_graph(root)
    reasons = _seen_here(root, graph, values)
    stale = downstream_closure(set(reasons), graph)
    if len(stale) < len(graph):  # in a new workspace all is known without DVC
        told = {name: _describe(entry) for name, entry in _dvc_status(root).items()}
        reasons = {name: reason for name in graph if (reason := reasons.get(name) or told.get(name))}
        stale = downstream_closure(set(reasons), graph)
    ordered = tuple(name for name in graph if name in stale)
    return Staleness(reasons, ordered, marker_path(root).exists())


def _seen_here(root: Path, graph: dict[str, StageSpec], values: dict[str, Any]) -> dict[str, str]:
    """Why stages are out of date, as far as dvc.lock, parameters and missing outputs tell."""
    locked = _locked_params(root)
    reasons: dict[str, str] = {}
    for name, spec in graph.items():
        missing = next((out for out in spec.outs if not (root / out).exists()), None)
        if name not in locked:
            reasons[name] = "it has not run yet"
        elif changed := _changed_params(spec, values, locked[name]):
            reasons[name] = changed
        elif missing:
            reasons[name] = f"{missing} is not there"
    return reasons


def _dvc_status(root: Path) -> dict[str, Any]:
    done = subprocess.run(
        dvc_command("status", "--json"),
        cwd=root,
        env={**settings(root), **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        status: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        fault = " ".join((done.stderr or done.stdout).removeprefix("ERROR: ").split())
        raise StageError(f"`dvc status` failed in {root}: {fault[:400]}") from None
    return status


def _describe(entry: list[Any]) -> str:
    """The first reason of a stage in `dvc status --json`, but for its parameters; empty when there is no other."""
    for part in entry:
        if part == "changed command":
            return "its command changed"
        for kind, items in part.items() if isinstance(part, dict) else ():
            for path, state in items.items():
                if not path.endswith("params.yaml"):
                    role = "output" if kind == "changed outs" else "input"
                    return f"{role} {path} is {state}" if isinstance(state, str) else f"{role} {path} changed"
    return ""


def _locked_params(root: Path) -> dict[str, dict[str, Any]]:
    """Parameters of each stage as dvc.lock recorded them, `{stage: {dotted key: value}}`."""
    try:
        lock = YAML(typ="safe").load((root / "dvc.lock").read_text()) or {}
        return {
            name: next(iter(entry.get("params", {}).values()), {}) for name, entry in lock.get("stages", {}).items()
        }
    except FileNotFoundError:
        return {}
    except (YAMLError, AttributeError):
        return {}  # cut off in the middle: every stage is visited, and tasks/repair.py mends it


def _changed_params(spec: StageSpec, values: dict[str, Any], locked: dict[str, Any]) -> str:
    changed = [key for key, value in select(values, spec.params).items() if locked.get(key) != value]
    return f"parameters changed: {', '.join(changed)}" if changed else ""
