"""What git prints, for those who go on without it: no repository, no commit, no git."""

from __future__ import annotations

import subprocess
from pathlib import Path

CODE = ("sparsekd", "tasks", "flows", "presets", "dvc.yaml", "pyproject.toml", "requirements.lock")
"""What makes a commit "dirty". params.yaml and dvc.lock change with each run and are recorded by themselves."""
_SECONDS = 30


def git_output(root: Path, *arguments: str, text: bytes = b"", seconds: float | None = None) -> bytes | None:
    """The standard output of `git …` in `root` with `text` as its input; None where it fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, input=text, capture_output=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def code_state(root: Path) -> tuple[str | None, bool]:
    """The commit that is checked out, None without one, and whether the code was edited since."""
    commit = git_output(root, "rev-parse", "HEAD", seconds=_SECONDS)
    if commit is None:
        return None, False
    edited = git_output(root, "status", "--porcelain", "--", *CODE, seconds=_SECONDS)
    return commit.decode(errors="replace").strip(), bool(edited)
