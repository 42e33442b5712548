"""A sweep's plan: the grid of settings, one isolated run a point, and which of them are done.

It is kept in `.sparsekd/sweeps/NAME/`. Without a name of its own a sweep is named by what it computes, so that the same
command goes on with the same sweep.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.checks import preflight
from flows.settings import params
from flows.workspaces.kept import kept_config, kept_runs, same_values
from flows.workspaces.lock import current_holder
from flows.workspaces.workspace import Revision, Workspace, check_name, revision_of
from sparsekd.config import BUDGETS, RunConfig
from sparsekd.errors import ConfigError
from tasks.state import FOLDER, read_json, write_json

_SHORT = {"prune.width": "w"}


@dataclass(frozen=True)
class Point:
    """One configuration of the grid: `label` tells what it has of its own, `run` is its isolated run's name."""

    label: str
    run: str
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """The sweep `name` of the checkout at `home`: all its runs start from `revision`, which `at` named."""

    home: Path
    name: str
    at: str | None
    revision: Revision
    settings: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def folder(self) -> Path:
        """Its records, states and logs."""
        return self.home / FOLDER / "sweeps" / self.name

    def file(self, point: Point) -> Path:
        """What the process of `point` reads."""
        return self.folder / f"{point.label}.json"

    def write(self) -> None:
        """Note the plan. Raises ConfigError where the name stands for another grid."""
        noted: Any = read_json(self.folder / "sweep.json") or {}
        commit = self.revision.tree if self.at is not None else None
        if noted and noted.get("at") != commit:
            raise ConfigError(
                f"Sweep {self.name} started from another revision; choose another --name, or none: without one a sweep "
                "is named by what it computes."
            )
        for point in self.points:
            before = noted.get("points", {}).get(point.label)
            if before is not None and before != params.sections(point.config):
                raise ConfigError(
                    f"Sweep {self.name} has another {point.label} already; choose another --name, or none: without one "
                    "a sweep is named by what it computes."
                )
        points = noted.get("points", {}) | {point.label: params.sections(point.config) for point in self.points}
        values = {"name": self.name, "at": commit, "settings": self.settings, "points": points}
        write_json(self.folder / "sweep.json", values)

    def done(self) -> set[str]:
        """Labels of the points whose run has ended well and is still kept."""
        kept = {record.name for record in kept_runs(self.home)}
        found = {point.label: kept_config(self.home, point.run) for point in self.points if point.run in kept}
        return {
            p.label for p in self.points if (config := found.get(p.label)) and same_values(self.home, config, p.config)
        }

    def left_behind(self, point: Point) -> Workspace | None:
        """The workspace that a killed run of `point` left."""
        space = Workspace(self.home, point.run)
        return space if space.path.exists() and current_holder(space.path) is None else None


def plan(
    home: Path, settings: Sequence[str], preset: str | None = None, at: str | None = None, name: str | None = None
) -> Plan:
    """The grid of `settings` (`stage.key=value,value`) over params.yaml, or over that of `at`, checked point by point.

    Raises SparseKDError for a setting, source or combination that no run could start from.
    """
    fixed, varied = _read(settings)
    base = settled(home, fixed, preset, at)
    found = []
    for values in itertools.product(*varied.values()):
        chosen = [f"{key}={value}" for key, value in zip(varied, values, strict=True)]
        config = params.with_settings(base, chosen, "your -S options")
        if config.model != base.model or config.texts != base.texts:
            config, _ = preflight.resolve_sources(config, home)
        preflight.check_settings(home, config, preflight.dense_config(home, config))
        found.append((_label(dict(zip(varied, values, strict=True))), config))
    revision = revision_of(home, at)
    name = name or f"sweep-{digest([config for _, config in found], revision.tree if at is not None else None)}"
    check_name(name)
    points = tuple(Point(label, f"{name}-{label}", config) for label, config in found)
    for point in points:
        check_name(point.run)
    if len({point.label for point in points}) < len(points):
        raise ConfigError("Two values of the grid differ only in signs that a name cannot have; sweep them one by one.")
    return Plan(home, name, at, revision, tuple(settings), points)


def settled(home: Path, settings: Sequence[str], preset: str | None, at: str | None) -> RunConfig:
    """What the runs of a sweep share: params.yaml, or that of `at`, with one value a setting; sources are resolved."""
    base = params.load_at(home, at)
    if preset is not None:
        base = params.with_preset(base, preset, home)
    config, _ = preflight.resolve_sources(params.with_settings(base, list(settings), "your -S options"), home)
    return config


def _read(settings: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Settings with one value, and the keys with several. A list's own commas are no grid."""
    fixed: list[str] = []
    varied: dict[str, list[str]] = {}
    for setting in settings:
        key, value = params.parse_setting(setting)
        values = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
        if key in varied or any(other.partition("=")[0].strip() == key for other in fixed):
            raise ConfigError(f"{key} is given twice; give all its values at once: -S {key}=a,b.")
        if len(values) < 2:
            fixed.append(setting)
            continue
        if "" in values or len(set(values)) != len(values):
            raise ConfigError(f"{key} is {value!r}; a sweep needs different values between commas: -S {key}=a,b.")
        varied[key] = values
    budgets = sorted({f"prune.{key}" for key in BUDGETS} & {*varied, *(s.partition("=")[0].strip() for s in fixed)})
    if len(budgets) > 1:
        raise ConfigError(
            f"{' and '.join(budgets)} are given; only one can say how much is kept. Leave the others out."
        )
    if not varied:
        raise ConfigError(
            "A sweep needs a setting with several values, such as -S prune.width=0.9,0.75,0.5; for a single run use "
            "`sparsekd compress --isolated`."
        )
    return fixed, varied


def _label(values: dict[str, str]) -> str:
    """`w0.75-alpha0.5`: the last part of each key and its value, as far as a file's name takes it."""
    names = [key.rpartition(".")[2] for key in values]
    parts = []
    for (key, value), name in zip(values.items(), names, strict=True):
        short = _SHORT.get(key) or (name if names.count(name) == 1 else key.replace(".", "-"))
        parts.append(re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", f"{short}{value}"))
    return "-".join(parts)


def digest(configs: list[RunConfig], commit: str | None) -> str:
    """Six digits that stand for what `configs` compute, started from `commit`."""
    text = json.dumps([commit, *(params.sections(config) for config in configs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:6]
