"""One stage through `dvc repro --single-item`, in its own process group: no orchestrator is needed or imported here."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, TextIO

from sparsekd.errors import StageError
from tasks.environment import dvc_command, stage_environment
from tasks.graph import StageSpec
from tasks.groups import start_group
from tasks.recorded import check_recorded
from tasks.remote import Remote
from tasks.remote import environment as remote_environment
from tasks.repair import wait_for_blocker
from tasks.state import StageState, log_path, progress_path

Outcome = Literal["computed", "unchanged", "restored"]
_LAST_LINES = 12
_UNCHANGED = re.compile(r"^Stage '.*' didn't change, skipping$")
_RESTORED = re.compile(r"^Stage '.*' is cached - skipping run|^Pulling data for ")
_BLOCKED = re.compile(r"^\s+\(PID (\d+)\): (.*)$")
_EXIT = re.compile(r"exited with (-?\d+)")
_DVC_AFTER = re.compile(r"^(Generating|Updating) lock file|^ERROR: |^To track the changes with git")
_KILLED = {-9, 137}


@dataclass(frozen=True)
class StageResult:
    """How a stage went. `restored` means from DVC's cache; only `computed` ran the stage's command."""

    stage: str
    outcome: Outcome
    seconds: float
    log: Path


@dataclass
class _Reading:
    """What the output of one `dvc repro` said so far."""

    on_line: Callable[[str], None]
    phase: Literal["before", "stage", "after"] = "before"
    outcome: Outcome = "computed"
    last: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    errors: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        if self.phase == "before" and line.startswith("> "):
            self.phase, self.outcome = "stage", "computed"
        elif self.phase == "before" and _UNCHANGED.match(line):
            self.outcome = "unchanged"
        elif self.phase == "before" and _RESTORED.match(line):
            self.outcome = "restored"
        elif self.phase == "stage" and not _DVC_AFTER.match(line):
            if line.strip():
                self.last.append(line)
                self.on_line(line)
        else:
            self.phase = "after" if self.phase == "stage" else self.phase
            self.errors += [line] if line.startswith("ERROR: ") or self.errors else []

    def complaint(self) -> str:
        """What DVC itself complained of, in one line."""
        return " ".join(line.removeprefix("ERROR: ").strip() for line in self.errors if line.strip())


def reproduce(
    root: Path,
    spec: StageSpec,
    on_line: Callable[[str], None] = lambda line: None,
    stopping: threading.Event | None = None,
    remote: Remote | None = None,
) -> StageResult:
    """Bring stage `spec` of the checkout at `root` up to date; the stages it reads must be so already.

    The stage's lines go to `on_line` and, with DVC's, to `.sparsekd/logs/<stage>.log`; its state to
    `.sparsekd/state/<stage>.json`. Raises StageError with the stage's own reason (its `error:` line, or its last
    lines) when it fails, is killed, or was given other parameters than DVC recorded. `stopping` is set by whoever
    ends the groups of a run on purpose. What `remote` has is pulled instead of computed.
    """
    log = log_path(root, spec.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    progress_path(root, spec.name).parent.mkdir(parents=True, exist_ok=True)
    progress_path(root, spec.name).unlink(missing_ok=True)
    shown = log.relative_to(root).as_posix()
    begun = time.time()
    StageState(spec.name, "running", started=begun, log=shown).write(root)
    try:
        reading, code = _run_with(remote, root, spec, log, on_line, stopping)
        if code != 0:
            stopped = stopping is not None and stopping.is_set()
            raise StageError("The run was stopped." if stopped else _explain(spec.name, reading, code, shown))
        check_recorded(root, spec)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        StageState(spec.name, "failed", begun, time.time(), time.time() - begun, reason, shown).write(root)
        raise
    ended = time.time()
    state: Literal["done", "cached"] = "done" if reading.outcome == "computed" else "cached"
    StageState(spec.name, state, begun, ended, ended - begun, None, shown).write(root)
    return StageResult(spec.name, reading.outcome, ended - begun, log)


def _run_with(
    remote: Remote | None,
    root: Path,
    spec: StageSpec,
    log: Path,
    on_line: Callable[[str], None],
    stopping: threading.Event | None,
) -> tuple[_Reading, int]:
    """Run the stage with what `remote` has; without it as soon as it cannot be used: then `--pull` fails hard."""
    if remote is not None and remote.usable:
        reading, code = _run_until_not_busy(root, spec, log, on_line, pull=True)
        if code == 0 or reading.phase != "before" or (stopping is not None and stopping.is_set()):
            return reading, code
        remote.lose(reading.complaint() or f"dvc ended with code {code}")
    return _run_until_not_busy(root, spec, log, on_line)


def _run_until_not_busy(
    root: Path, spec: StageSpec, log: Path, on_line: Callable[[str], None], pull: bool = False
) -> tuple[_Reading, int]:
    """Run `dvc repro` again as long as another DVC process holds one of the stage's files."""
    while True:
        reading, code = _run_once(root, spec, log, on_line, pull)
        blockers = [(int(m[1]), m[2]) for line in reading.errors if (m := _BLOCKED.match(line))]
        if code == 0 or not blockers or not any("is busy" in line for line in reading.errors):
            return reading, code
        for pid, command in blockers:
            on_line(f"waiting for process {pid} ({command}), which uses the files of stage {spec.name}")
            wait_for_blocker(root, pid)


def _run_once(
    root: Path, spec: StageSpec, log: Path, on_line: Callable[[str], None], pull: bool
) -> tuple[_Reading, int]:
    command = dvc_command("--wait-for-lock", "repro", *["--pull"] * pull, "--single-item", spec.name)
    env = remote_environment(root, spec.name) if pull else stage_environment(root, spec.name)
    reading = _Reading(on_line)
    with _Log(log) as stream:
        group = start_group(command, root=root, name=spec.name, env=env)
        try:
            for line in _lines(group.output):
                reading.take(line)
                stream.write(line, worth_keeping=reading.phase != "before")
            code = group.wait()
        except BaseException:
            group.end()
            raise
        stream.write(f"(ended with code {code})", worth_keeping=code != 0 or reading.phase != "before")
    return reading, code


class _Log:
    """A stage's log. A run in which nothing was computed leaves that of the latest computation alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[str] = []
        self._stream: TextIO | None = None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, line: str, worth_keeping: bool) -> None:
        self._held.append(line)
        if worth_keeping:
            self._stream = self._stream or self._path.open("w", encoding="utf-8", errors="replace")
            self._stream.writelines(f"{held}\n" for held in self._held)
            self._stream.flush()
            self._held.clear()


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as text; of a progress bar, which rewrites its line after a carriage return, only the last state."""
    for raw in stream:
        yield raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]


def _explain(stage: str, reading: _Reading, code: int, log: str) -> str:
    """Why the stage failed, in its own words rather than DVC's."""
    lines = list(reading.last)
    mark = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("error: ")), None)
    if mark is not None:
        reason = " ".join(lines[mark:][:5]).removeprefix("error: ")
        return f"Stage {stage} failed: {reason} Its log is {log}."
    with contextlib.suppress(StopIteration):
        code = next(int(m[1]) for line in reading.errors if (m := _EXIT.search(line)))
    if reading.phase == "before":
        return f"Stage {stage} did not start: {reading.complaint() or f'dvc ended with code {code}'}. Its log is {log}."
    if code in _KILLED:
        how = "was killed, most likely because the memory ran out (lower its batch_size or calibrate.sequence_length)"
    else:
        how = f"ended with code {code}" + (f" ({lines[-1].strip()})" if lines else "")
    tail = "\n".join(f"  {line}" for line in lines[-_LAST_LINES:]) or "  (nothing)"
    return f"Stage {stage} {how}. Its log is {log}; its last lines:\n{tail}"
