"""git and DVC by their command lines: DVC's Python interface is not safe beside threads that use it too."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from sparsekd.errors import StageError
from tasks import environment

_NOBODY = {"NAME": "sparsekd", "EMAIL": "sparsekd@localhost"}


def git(root: Path, *arguments: str) -> str:
    """What `git …` prints in `root`. Raises StageError with its complaint."""
    return _run(["git"], arguments, root, dict(os.environ))


def try_git(root: Path, *arguments: str) -> str | None:
    """What `git …` prints in `root`, or None where it fails."""
    with contextlib.suppress(StageError):
        return git(root, *arguments)
    return None


def dvc(root: Path, *arguments: str) -> str:
    """What `dvc …` prints in `root`. Raises StageError with its complaint."""
    program = environment.dvc_command("--wait-for-lock")
    return _run(program, arguments, root, {**environment.settings(root), **_identity(root), **os.environ})


def _identity(root: Path) -> dict[str, str]:
    """Who makes the commit of an experiment, where git knows nobody: DVC would refuse at the end of a run."""
    if try_git(root, "config", "user.email") and try_git(root, "config", "user.name"):
        return {}
    roles = ("GIT_AUTHOR", "GIT_COMMITTER")
    return {f"{role}_{part}": value for role in roles for part, value in _NOBODY.items()}


def _run(program: list[str], arguments: tuple[str, ...], root: Path, variables: dict[str, str]) -> str:
    command = [*program, *arguments]
    done = subprocess.run(
        command, cwd=root, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shown = "git" if program == ["git"] else "dvc"
        verb = next(word for word in arguments if not word.startswith("-"))
        fault = " ".join((done.stderr or done.stdout).replace("ERROR: ", "").split())
        raise StageError(f"`{shown} {verb}` failed in {root}: {fault[:400]}")
    return done.stdout.strip()
