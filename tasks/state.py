"""What a run leaves in `.sparsekd/` for others to read: one small state file a stage, its log, its progress.

The command line's display, the flow and the tracking task all read these; none of them asks Prefect.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = ".sparsekd"
StateName = Literal["waiting", "running", "cached", "done", "failed"]


@dataclass(frozen=True)
class StageState:
    """How far one stage of the run is. Times are seconds since the epoch, `seconds` is the wall time of this run."""

    stage: str
    state: StateName
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    reason: str | None = None
    log: str | None = None

    def write(self, root: Path) -> None:
        """Replace `.sparsekd/state/<stage>.json`; a workspace that is gone already does not come back for it."""
        if root.is_dir():
            write_json(state_path(root, self.stage), asdict(self))


def read_state(root: Path, stage: str) -> StageState | None:
    """The state of `stage`, or None before its first run."""
    values = read_json(state_path(root, stage))
    return StageState(**values) if isinstance(values, dict) else None


def state_path(root: Path, stage: str) -> Path:
    """`.sparsekd/state/<stage>.json`: a StageState."""
    return root / FOLDER / "state" / f"{stage}.json"


def log_path(root: Path, stage: str) -> Path:
    """`.sparsekd/logs/<stage>.log`: all that the stage and DVC printed in its latest run."""
    return root / FOLDER / "logs" / f"{stage}.log"


def progress_path(root: Path, stage: str) -> Path:
    """`.sparsekd/progress/<stage>.json`: what tasks/process.py reports while the stage works."""
    return root / FOLDER / "progress" / f"{stage}.json"


def context_path(root: Path) -> Path:
    """`.sparsekd/context.json`: what the flow tells the report beside the run itself (sparsekd.report.Context)."""
    return root / FOLDER / "context.json"


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Replace `path` by `value` as JSON, so that no reader ever sees half of it. `mode` is less the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(value, stream, ensure_ascii=False)
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The value in `path`, or None where there is none that can be read."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return json.loads(path.read_text())
    return None
