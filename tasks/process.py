"""What every stage does around its work, in its own process.

Read and check params.yaml, prepare the process, verify the inputs, hand the work a draft directory, make sure that
nothing it read has changed meanwhile, and only then put the output in its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsekd.artifacts import Artifact, Draft, writing
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError, ResourceError, SparseKDError, StageError
from sparsekd.runtime import prepare_process
from sparsekd.settings import parse_config
from tasks.graph import StageSpec, stage_by_command
from tasks.quick import leave_quickly

PARAMS = Path("params.yaml")
PROGRESS_VARIABLE = "SPARSEKD_PROGRESS"
"""Names the file that a stage writes its progress to, one JSON object that is replaced as it goes."""
CHECKPOINTS_VARIABLE = "SPARSEKD_CHECKPOINTS"
"""Names the folder of resumable checkpoints: outside every output, and one for all workspaces of a checkout."""


@dataclass
class Stage:
    """What a stage's work sees: its configuration, its verified inputs, the directory to fill, and progress."""

    spec: StageSpec
    config: RunConfig
    inputs: dict[str, Artifact]
    draft: Draft

    @property
    def out(self) -> Path:
        """Write files here; the directory gets its final name after the work."""
        return self.draft.path

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest records beside the files."""
        return self.draft.facts

    @property
    def checkpoints(self) -> Path:
        """The folder of this stage's resumable work."""
        return Path(os.environ.get(CHECKPOINTS_VARIABLE, ".checkpoints")) / self.spec.name

    @property
    def identity(self) -> str:
        """The hashes of all inputs: resumable work belongs to them."""
        return " ".join(artifact.manifest.sha256() for artifact in self.inputs.values())

    def artifact(self, path: str) -> Artifact:
        """The verified input at `path`, which dvc.yaml must list as a dependency of this stage."""
        return self.inputs[path]

    def say(self, text: str) -> None:
        """One line for the log."""
        print(text, flush=True)

    def warn(self, text: str) -> None:
        """One line for the log that the manifest keeps too."""
        print(f"warning: {text}", flush=True)
        self.facts.setdefault("warnings", []).append(text)

    def progress(self, done: float, total: float, unit: str, **values: float) -> None:
        """Report progress (see sparsekd.progress)."""
        _report(self.spec.name, done, total, unit, values)


def run_stage(command: list[str], work: Callable[[Stage], None]) -> NoReturn:
    """Run `work` as the stage with this command and exit: 0 done, 2 for an error the user can mend."""
    leave_quickly()
    try:
        with _full_disk_named():
            _run(stage_by_command(command), work)
    except SparseKDError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    sys.exit(0)


@contextlib.contextmanager
def _full_disk_named() -> Iterator[None]:
    """ResourceError where the disk is full; safetensors raises an error of its own with the system's number in it."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "os error 28" not in str(error):
            raise
        raise ResourceError(
            f"The disk of {Path.cwd()} is full. Free some space (`sparsekd gc` says what nothing needs) and run "
            "again: finished stages and the last checkpoint are kept."
        ) from error


def _run(spec: StageSpec, work: Callable[[Stage], None]) -> None:
    values = read_params()
    config = parse_config(values)
    prepare_process(config.runtime)
    before = _fingerprint(spec, values)
    inputs = {path: Artifact.read(Path(path)) for path in spec.data_deps}
    hashes = {path: artifact.manifest.sha256() for path, artifact in inputs.items()}
    with writing(spec.out, spec.name, select(values, spec.params), hashes) as draft:
        work(Stage(spec, config, inputs, draft))
        changed = [place for place, state in _fingerprint(spec, read_params()).items() if before.get(place) != state]
        if changed:
            # DVC hashes parameters and inputs after the command: recording this output would poison its run-cache.
            raise StageError(
                f"{', '.join(changed)} changed while stage {spec.name} ran; its output would not be what params.yaml "
                "says, so it was thrown away. Run `sparsekd compress` again."
            )


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """params.yaml as nested mappings, read as DVC reads it: YAML 1.2, where `on` is text and 3e-4 a number.

    Raises ConfigError when it is absent or no YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text()) or {}
    except OSError:
        raise ConfigError(f"{path.absolute()} is not there; run from the root of the project.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}. Edit {path}.") from None


def select(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that a stage depends on, as `{dotted key: value}`."""
    chosen: dict[str, Any] = {}
    for key in keys:
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        chosen[key] = value
    return chosen


def _fingerprint(spec: StageSpec, values: dict[str, Any]) -> dict[str, Any]:
    """The state of all that the stage depends on: parameters by value, files by size, time and inode."""
    state: dict[str, Any] = {f"params.yaml: {key}": value for key, value in select(values, spec.params).items()}
    for dep in spec.deps:
        path = Path(dep)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if "__pycache__" not in p.parts)
        state[dep] = [(str(p), s.st_size, s.st_mtime_ns) for p in files if p.is_file() and (s := p.stat())]
    return state


_last_report = 0.0


def _report(stage: str, done: float, total: float, unit: str, values: dict[str, float]) -> None:
    """Replace the progress file, or print a plain line when nobody reads one; seldom, and at the end."""
    global _last_report
    now = time.monotonic()
    target = os.environ.get(PROGRESS_VARIABLE)
    if done < total and now - _last_report < (0.5 if target else 10.0):
        return
    _last_report = now
    if target:
        partial = f"{target}.partial"
        Path(partial).write_text(json.dumps({"stage": stage, "done": done, "total": total, "unit": unit, **values}))
        os.replace(partial, target)
    else:
        figures = "".join(f", {name} {value:.4g}" for name, value in values.items())
        print(f"{stage}: {done:,.0f} of {total:,.0f} {unit}{figures}", flush=True)
