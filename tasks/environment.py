"""Environment variables of Prefect, DVC, MLflow and the stages, in one place.

`apply` must run before prefect is imported: Prefect reads its home and its settings at import.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from sparsekd.errors import ResourceError
from tasks.process import CHECKPOINTS_VARIABLE, PROGRESS_VARIABLE
from tasks.quick import QUICK
from tasks.state import progress_path

ROOT_VARIABLE = "SPARSEKD_HOME"
"""Names the checkout; without it the checkout is the nearest directory upwards that has a dvc.yaml."""


def checkout_root() -> Path:
    """The checkout that this process works in."""
    if named := os.environ.get(ROOT_VARIABLE):
        return Path(named).absolute()
    here = Path.cwd()
    return next((d for d in (here, *here.parents) if (d / "dvc.yaml").is_file()), here)


def apply(root: Path, *, name_root: bool = True) -> None:
    """Set what Prefect, DVC and MLflow read from the environment of this process; what is set already stays.

    A module that defines a flow applies it without `name_root`: `prefect deploy` imports it, and would write this
    machine's SPARSEKD_HOME into the deployment, in place of each worker's own (prefect.yaml).
    """
    for name, value in settings(root).items():
        if name_root or name != ROOT_VARIABLE:
            os.environ.setdefault(name, value)


def settings(root: Path) -> dict[str, str]:
    """Checkpoints and Prefect's home inside the checkout, patience at its start, no telemetry from any tool."""
    return {
        ROOT_VARIABLE: str(root),
        CHECKPOINTS_VARIABLE: str(root / ".checkpoints"),
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        # A sign of life, by which flows/server/automations.py knows a dead run
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",  # a run that a form asks for starts in 2 s instead of 10
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def quiet_console() -> None:
    """Keep Prefect's log off the console (it still reaches the flow run's log): for a caller that draws its own."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    # A heartbeat that is cut off by the run's end is an error with its whole content in the log of Prefect's threads
    os.environ["PREFECT_INTERNAL_LOGGING_LEVEL"] = "CRITICAL"


def stage_environment(root: Path, stage: str) -> dict[str, str]:
    """The environment of the process that runs `stage` through DVC."""
    executable = python()
    return {
        **os.environ,
        **{name: value for name, value in settings(root).items() if name not in os.environ},
        "PATH": os.pathsep.join([str(Path(executable).parent), os.environ.get("PATH", os.defpath)]),
        "SHELL": "/bin/sh",  # DVC runs a stage in $SHELL, whatever that is
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(link_folder() / "inductor"),
        PROGRESS_VARIABLE: str(progress_path(root, stage)),
    }


def dvc_command(*arguments: str) -> list[str]:
    """`dvc arguments…`, for a process in any workspace of this checkout."""
    return [python(), "-P", str(QUICK), "dvc", *arguments]


def python() -> str:
    """This interpreter by a path without a space.

    torch.compile hands the compiler the paths of the environment's headers and libraries unquoted, so a space in them
    breaks it. Python takes the path it was started by for its prefix, so a link is enough.
    """
    if " " not in sys.executable:
        return sys.executable
    return str(space_free(Path(sys.prefix)) / Path(sys.executable).relative_to(sys.prefix))


def space_free(path: Path) -> Path:
    """`path`, or a link to it whose path has no space."""
    if " " not in str(path):
        return path
    link = link_folder() / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    if not (link.is_symlink() and os.readlink(link) == str(path)):
        fresh = link.with_name(f"{link.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(path, target_is_directory=True)
        os.replace(fresh, link)
    return link


def link_folder() -> Path:
    """A folder of this user's alone, under a temporary directory whose path has no space.

    Raises ResourceError when its name is taken by something that another user could write to.
    """
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    base = next((place for place in places if " " not in place and os.access(place, os.W_OK)), None)
    if base is None:
        raise ResourceError("No temporary directory without a space in its path can be written to; set TMPDIR to one.")
    folder = Path(base) / f"sparsekd-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ResourceError(f"{folder} belongs to another user or is open to others; remove it, or set TMPDIR.")
    return folder
