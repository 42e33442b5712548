"""A checkout in miniature: four trivial stages that behave as a test tells them, under real git and real DVC.

    calibrate → teacher, prune → distill

Each stage runs through tasks/process.py like a real one. A file `control/<action>-<stage>` changes what it does:
`hold` makes it wait until the file is gone, `fail` an error that the user can mend, `crash` an exception, `full` a
write to a full disk, `edit` an edit of params.yaml after the stage's own check. `control/ran-<stage>` counts its runs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows.workspaces.commands import git
from flows.workspaces.workspace import experiments
from tasks.cache import dvc_objects
from tasks.environment import dvc_command
from tasks.graph import StageSpec, read_graph
from tests.databases import copy_prefect_database

STAGES = ("calibrate", "teacher", "prune", "distill")
CHECKOUT = Path(__file__).parent.parent
_REST = 40
"""So much longer than looking for something takes is the rest before looking again."""

_DVC_YAML = """\
metrics: [data/distilled/metrics.json]
stages:
  calibrate:
    cmd: python -m mini.work calibrate
    params: [calibrate]
    deps: [mini/work.py]
    outs: [data/calibration]
  teacher:
    cmd: python -m mini.work teacher
    params: [teacher]
    deps: [mini/work.py, data/calibration]
    outs: [data/teacher]
  prune:
    cmd: python -m mini.work prune
    params: [prune]
    deps: [mini/work.py, data/calibration]
    outs: [data/pruned]
  distill:
    cmd: python -m mini.work distill
    params: [distill]
    deps: [mini/work.py, data/pruned, data/teacher]
    outs: [data/distilled]
"""

_WORK = """\
import os, sys, time
from pathlib import Path
from sparsekd.errors import TrainingError
from tasks.process import Stage, run_stage

control = Path(os.environ.get("SPARSEKD_HOME", "")) / "control"  # the checkout's, for its workspaces too

def work(stage: Stage) -> None:
    name = stage.spec.name
    with (control / f"ran-{name}").open("a") as ran:
        ran.write("x")
    stage.say(f"{name} at work")
    made_from = {"prune": stage.config.prune.width, "distill": stage.config.distill.alpha}.get(name, 1)
    (stage.out / "value.txt").write_text(f"{name} {made_from}\\n")
    if name == "distill":
        (stage.out / "metrics.json").write_text("{\\"loss\\": 2.25}")
    stage.progress(1, 2, "steps", loss=2.5)
    while (control / f"hold-{name}").exists():
        (control / f"held-{name}").touch()
        time.sleep(0.02)
    fail = control / f"fail-{name}"  # with a text, only where that is what it is made from
    if fail.exists() and fail.read_text() in ("", str(made_from)):
        raise TrainingError("distill.learning_rate is 9; the loss is NaN at step 3. Lower it.")
    if (control / f"crash-{name}").exists():
        raise RuntimeError("the bug")
    if (control / f"full-{name}").exists():
        Path("/dev/full").write_text("x")
    stage.progress(2, 2, "steps", loss=2.25)

try:
    run_stage(["mini.work", sys.argv[1]], work)
except SystemExit as ended:
    mark = control / f"edit-{sys.argv[1]}"
    if not ended.code and mark.exists():  # the moment between the stage's own check and DVC's hashing
        params = Path("params.yaml")
        params.write_text(params.read_text().replace("width: 0.75", mark.read_text()))
    raise
"""

_PARAMS = """\
# kept comment
calibrate: {tokens: 4096, sequence_length: 64}
teacher:
  batch_size: 4
prune:
  width: 0.75  # of intermediate_size
  statistics_tokens: 1024
distill:
  alpha: 0.5
"""


@dataclass
class Miniature:
    """One such checkout."""

    root: Path

    @property
    def graph(self) -> dict[str, StageSpec]:
        return read_graph(self.root)

    def copy(self, path: Path) -> Miniature:
        """The same at `path`, to change at will."""
        shutil.copytree(self.root, path, symlinks=True)
        return Miniature(path)

    def control(self, action: str, stage: str, text: str = "") -> Path:
        """Tell a stage what to do; unlink the file that is returned to end it."""
        path = self.root / "control" / f"{action}-{stage}"
        path.write_text(text)
        return path

    def runs(self, stage: str) -> int:
        """How many times the stage's command has run."""
        path = self.root / "control" / f"ran-{stage}"
        return len(path.read_text()) if path.exists() else 0

    def edit(self, old: str, new: str) -> None:
        """Edit params.yaml as a person would."""
        path = self.root / "params.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def lock(self, stage: str) -> dict[str, object]:
        """The stage's entry in dvc.lock, {} without one."""
        path = self.root / "dvc.lock"
        return yaml.safe_load(path.read_text())["stages"].get(stage, {}) if path.exists() else {}

    def value(self, out: str) -> str:
        return (self.root / "data" / out / "value.txt").read_text()

    def kept(self, name: str, out: str) -> str:
        """What `value` would be if the experiment `name` were restored, from DVC's cache."""
        lock = git(self.root, "show", f"{experiments(self.root)[name].tree}:dvc.lock")
        return dvc_objects(self.root, f"data/{out}", lock)["value.txt"].read_text()

    def held(self, stage: str) -> None:
        """Wait until the stage has reached its `hold`."""
        wait_until(lambda: (self.root / "control" / f"held-{stage}").exists(), f"{stage} to be held")

    def processes(self) -> list[str]:
        """Command lines of all processes that work in this checkout, but for this one."""
        return processes_in(self.root)


def make_miniature(path: Path) -> Miniature:
    """A fresh checkout at `path`, with git and DVC but nothing computed."""
    shutil.copytree(_fresh(), path, symlinks=True)
    return Miniature(path)


@functools.cache
def _fresh() -> Path:
    """Made once a process: `dvc init` and git take longer than a copy of what they leave."""
    folder = tempfile.TemporaryDirectory(prefix="sparsekd-miniature-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "miniature"
    (path / "mini").mkdir(parents=True)
    (path / "control").mkdir()
    (path / "dvc.yaml").write_text(_DVC_YAML)
    (path / "params.yaml").write_text(_PARAMS)
    (path / "mini" / "work.py").write_text(_WORK)
    (path / "mini" / "__init__.py").touch()
    shutil.copytree(CHECKOUT / "presets", path / "presets")
    (path / ".gitignore").write_text("/.sparsekd/\n/.prefect/\n/control/\n/mlflow/*\n__pycache__/\n*.partial/\n")
    copy_prefect_database(path)
    (path / "mlflow").mkdir()
    shutil.copy(CHECKOUT / "mlflow" / "server.env", path / "mlflow")
    quietly = {"check": True, "cwd": path, "stdout": subprocess.DEVNULL}
    subprocess.run(["git", "init", "-q", "."], **quietly)
    subprocess.run(dvc_command("init", "-q"), **quietly)
    (path / ".dvcignore").write_text("__pycache__\n*.partial\n*.old\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "add", "."], **quietly)
    subprocess.run(["git", *identity, "commit", "-q", "-m", "miniature"], **quietly)
    return path


@contextlib.contextmanager
def started(miniature: Miniature, program: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python `program` at work in the checkout, in a session of its own; its output is in `.stdout`.

    What is left of it at the end is killed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SPARSEKD_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=miniature.root,
        env=clean | {"PATH": path} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None and not process.stdout.closed:
            process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 of one process, as the kernel does it when memory runs out."""
    process.kill()
    process.communicate()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll `condition`; AssertionError naming `what` when it does not come true in time.

    What takes long is asked for seldom: a Prefect server that is asked all the time does little else.
    """
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"waited {seconds} s for {what}"
        time.sleep(min(max(0.02, _REST * (now - asked)), 1.0, deadline - now))


def processes_in(root: Path) -> list[str]:
    """Command lines of the processes whose working directory is in `root`, but for this one. Zombies do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            where = Path(os.readlink(entry / "cwd"))
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if command and where.is_relative_to(root):
            found.append(command)
    return found
