"""A flow run that `sparsekd serve` started ends with it, even when that is killed: nothing works on unseen."""

from __future__ import annotations

import os
import signal
import threading
import time

from tasks.groups import created, lives

SERVER_VARIABLE = "SPARSEKD_SERVE_PID"
"""The process id of the `sparsekd serve` that started this process, and its time of creation: `pid:created`."""
_POLL_SECONDS = 0.5


def name_server() -> None:
    """Make this process the one whose end its flow runs follow."""
    os.environ[SERVER_VARIABLE] = f"{os.getpid()}:{created(os.getpid())}"


def end_with_parent() -> None:
    """Watch in the background the process that `name_server` named; once it is gone, end this one.

    The guards of its groups (tasks/guard.py) then end those.
    """
    named = os.environ.get(SERVER_VARIABLE)
    if not named or named.startswith(f"{os.getpid()}:"):
        return
    pid, _, since = named.partition(":")
    threading.Thread(target=_watch, args=(int(pid), float(since)), daemon=True).start()


def _watch(pid: int, since: float) -> None:
    while lives(pid, since):
        time.sleep(_POLL_SECONDS)
    # Its API server is gone too: an orderly end would wait for it. Its workspace stays, by which the next
    # `sparsekd serve` knows the run.
    os.kill(os.getpid(), signal.SIGKILL)
