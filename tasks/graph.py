"""The pipeline as dvc.yaml describes it: the only place where the order of the stages is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsekd.errors import StageError


@dataclass(frozen=True)
class StageSpec:
    """One stage of dvc.yaml with its `foreach` resolved."""

    name: str
    command: str
    params: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    description: str = ""
    alone: bool = False
    """Runs with no other stage beside it, because it takes times (`meta: {alone: true}` in dvc.yaml)."""

    @property
    def out(self) -> Path:
        """The one directory that the stage writes."""
        return Path(self.outs[0])

    @property
    def data_deps(self) -> tuple[str, ...]:
        """The artifacts it reads: those of its dependencies that other stages write."""
        return tuple(dep for dep in self.deps if dep.startswith("data/"))


def read_graph(root: Path = Path()) -> dict[str, StageSpec]:
    """Every stage by name, in the order of the file."""
    stages: dict[str, StageSpec] = {}
    for name, entry in yaml.safe_load((root / "dvc.yaml").read_text())["stages"].items():
        if "foreach" not in entry:
            stages[name] = _stage(name, entry, {})
            continue
        items = entry["foreach"]
        pairs = items.items() if isinstance(items, dict) else ((str(item), item) for item in items)
        for key, item in pairs:
            stages[f"{name}@{key}"] = _stage(f"{name}@{key}", entry["do"], {"key": key, "item": str(item)})
    return stages


def upstream(stage: StageSpec, stages: dict[str, StageSpec]) -> list[str]:
    """Names of the stages whose outputs `stage` reads."""
    return [name for name, other in stages.items() if set(other.outs) & set(stage.deps)]


def downstream_closure(stale: set[str], stages: dict[str, StageSpec]) -> set[str]:
    """`stale` and every stage that depends on one of them, however far."""
    closure = set(stale)
    for name, stage in stages.items():  # dvc.yaml lists a stage after those it reads
        if closure & set(upstream(stage, stages)):
            closure.add(name)
    return closure


def stages_behind(stages: dict[str, StageSpec]) -> dict[str, int]:
    """Length of the longest chain of stages that waits for each."""
    behind = dict.fromkeys(stages, 0)
    for name in reversed(stages):  # dvc.yaml lists a stage after those it reads
        for needed in upstream(stages[name], stages):
            behind[needed] = max(behind[needed], behind[name] + 1)
    return behind


def stage_by_command(command: list[str], root: Path = Path()) -> StageSpec:
    """The stage whose command is `python -m <command>`."""
    for stage in read_graph(root).values():
        if stage.command.split()[2:] == command:
            return stage
    raise StageError(f"dvc.yaml has no stage with the command `python -m {' '.join(command)}`.")


def _stage(name: str, entry: dict[str, Any], values: dict[str, str]) -> StageSpec:
    def fill(text: str) -> str:
        for key, value in values.items():
            text = text.replace("${" + key + "}", value)
        return text

    return StageSpec(
        name=name,
        command=fill(entry["cmd"]),
        params=tuple(entry.get("params", [])),
        deps=tuple(fill(dep) for dep in entry.get("deps", [])),
        outs=tuple(fill(out) for out in entry["outs"]),
        description=fill(entry.get("desc", "")),
        alone=bool((entry.get("meta") or {}).get("alone", False)),
    )
