"""A flow run that `sparsekd serve` started ends with it, even when that is killed: nothing works on unseen."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from tasks.graph import read_graph
from tasks.groups import created, end_recorded_groups, lives

SERVER_VARIABLE = "SPARSEKD_SERVE_PID"
"""The process id of the `sparsekd serve` that started this process, and its time of creation: `pid:created`."""
_POLL_SECONDS = 0.5


def name_server() -> None:
    """Make this process the one whose end its flow runs follow."""
    os.environ[SERVER_VARIABLE] = f"{os.getpid()}:{created(os.getpid())}"


def end_with_parent(root: Path, names: Iterable[str] | None = None) -> None:
    """Watch in the background the process that `name_server` named; once it is gone, end this one and its groups.

    Those are the groups called `names` that are recorded at `root`: by default its stages.
    """
    named = os.environ.get(SERVER_VARIABLE)
    if not named or named.startswith(f"{os.getpid()}:"):
        return
    pid, _, since = named.partition(":")
    threading.Thread(target=_watch, args=(root, names, int(pid), float(since)), daemon=True).start()


def _watch(root: Path, names: Iterable[str] | None, pid: int, since: float) -> None:
    while lives(pid, since):
        time.sleep(_POLL_SECONDS)
    end_recorded_groups(root, read_graph(root) if names is None else names)
    os.kill(os.getpid(), signal.SIGKILL)  # its API server is gone too: an orderly end would wait for it
