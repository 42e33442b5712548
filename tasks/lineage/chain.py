"""The links between a registered model and what it was made of, as they are recorded. Knows neither MLflow nor git."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsekd.artifacts import Manifest
from sparsekd.errors import SparseKDError
from tasks.tracking.record import MODEL
from tasks.tracking.registry import SHA256_TAG

RAW_MODEL, TEXTS, BENCHMARKS = "data/raw/model", "data/raw/texts", "data/raw/benchmarks"
DISTILLED, REPORT = MODEL, "data/report"
REQUIREMENTS = "requirements.lock"


class LineageError(SparseKDError):
    """What was asked for is no model, run or experiment that can be found here."""


@dataclass(frozen=True)
class Version:
    """A version in MLflow's registry. `created` is in milliseconds since the epoch."""

    name: str
    number: str
    source: str
    run_id: str | None = None
    created: int | None = None
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name}/{self.number}"

    @property
    def sha256(self) -> str | None:
        """The hash that stands for all of its files."""
        return self.tags.get(SHA256_TAG)


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow. Times are milliseconds since the epoch."""

    id: str
    name: str
    status: str
    experiment_id: str
    artifacts: str
    started: int | None = None
    ended: int | None = None
    deleted: bool = False
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """The DVC experiment and the git commits of a run.

    `commit` is where it started, `experiment_commit` what it was kept as: code, parameters and dvc.lock. Each may be
    known by name and yet not be in this repository.
    """

    commit: str | None = None
    commit_here: bool = False
    dirty: bool | None = None
    experiment: str | None = None
    experiment_commit: str | None = None

    @property
    def code(self) -> str | None:
        """The commit that has the code of the run, if it is here: the experiment's, which has uncommitted changes."""
        return self.experiment_commit or (self.commit if self.commit_here else None)


@dataclass(frozen=True)
class Lock:
    """dvc.lock of the run: the text that was found and where, and the sha256 that the run has as a tag."""

    text: bytes | None
    place: str
    sha256: str | None = None
    recorded: str | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def outs(self) -> dict[str, dict[str, Any]]:
        """Every output by path, in the order of the stages: its md5, size and number of files."""
        return {out["path"]: out for stage in self.stages.values() for out in stage.get("outs", [])}

    def code(self) -> list[Dependency]:
        """What the stages depend on beside each other's outputs: joined where they agree on the hash."""
        found: dict[tuple[str, str], list[str]] = {}
        sizes: dict[tuple[str, str], tuple[int, int]] = {}
        for name, stage in self.stages.items():
            for dep in stage.get("deps", []):
                if not dep["path"].startswith("data/"):
                    key = dep["path"], str(dep.get("md5"))
                    found.setdefault(key, []).append(name)
                    sizes[key] = dep.get("size", 0), dep.get("nfiles", 1)
        return [Dependency(path, md5, *sizes[path, md5], tuple(found[path, md5])) for path, md5 in sorted(found)]


@dataclass(frozen=True)
class Dependency:
    """A file or directory of code that stages were run with."""

    path: str
    md5: str
    size: int
    files: int
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """The whole chain. `logged` are the manifests that MLflow keeps of each output, as bytes."""

    asked: str
    root: Path
    uri: str | None
    version: Version | None
    run: TrackedRun | None
    origin: Origin
    lock: Lock
    manifests: dict[str, Manifest]
    logged: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def bring_back(self) -> str:
        """How the run's own bytes come out of DVC's cache, as long as it has them."""
        if self.origin.experiment_commit:
            return f"`sparsekd restore {self.origin.experiment} --out DIR`"
        return "`dvc checkout` with the run's dvc.lock in place"
