"""One computation a content: runs that want the same stage of the same inputs at once take turns.

The first computes it, the others find it in DVC's run-cache. The key is what DVC's own would be: the command, the
parameters, and the content of every dependency.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sparsekd.artifacts import Artifact, hash_file
from tasks.cache import cache_directory
from tasks.graph import StageSpec
from tasks.process import read_params, select

_POLL_SECONDS = 0.25


def content_key(root: Path, spec: StageSpec) -> str:
    """A hash of all that stage `spec` of the workspace at `root` is made from; its inputs must be whole."""
    params = select(read_params(root / "params.yaml"), spec.params)
    inputs = {dep: _artifact(root / dep) if dep in spec.data_deps else _code(root / dep) for dep in spec.deps}
    text = json.dumps([spec.command, params, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _artifact(path: Path) -> str:
    return Artifact.read(path, verify=False).manifest.sha256()


def _code(path: Path) -> dict[str, str]:
    """Hash of each file below `path`, without Python's compiled copies, which .dvcignore leaves out too."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    kept = [file for file in files if "__pycache__" not in file.parts]
    return {file.relative_to(path).as_posix(): hash_file(file) for file in kept}


@contextlib.contextmanager
def content_lock(
    root: Path,
    spec: StageSpec,
    on_wait: Callable[[str], None] = lambda text: None,
    ended: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold the content of stage `spec` among all runs that share the DVC cache of the workspace at `root`.

    The kernel lets go of it with its holder. While another run has it `on_wait` is told once; the call returns without
    the lock as soon as `ended` says so.
    """
    path = cache_directory(root) / "locks" / f"{spec.name}-{content_key(root, spec)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    with path.open("a") as stream:
        while not ended():
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    on_wait(f"waiting: another run computes stage {spec.name} from the same inputs")
                    told = True
                time.sleep(_POLL_SECONDS)
        yield
