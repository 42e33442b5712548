"""What git prints, for those who go on without it: no repository, no commit, no git."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_output(root: Path, *arguments: str, text: bytes = b"", seconds: float | None = None) -> bytes | None:
    """The standard output of `git …` in `root` with `text` as its input; None where it fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, input=text, capture_output=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
