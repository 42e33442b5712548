"""Commands in process groups of their own, under the guard, and how to end them so that nothing is left.

A group is recorded in `.sparsekd/groups/` while it lives: whoever comes after a crash, a cancellation or a kill -9
can end what is left of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from tasks.state import FOLDER, read_json, write_json

GUARD = Path(__file__).with_name("guard.py")
_END_SECONDS = 10.0


@dataclass
class Group:
    """A running command and its descendants. `process` is the guard; its output is the command's."""

    process: subprocess.Popen[bytes]
    record: Path
    _ender: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._ender = threading.Thread(target=self._end_stragglers, daemon=True)
        self._ender.start()

    @property
    def id(self) -> int:
        """The group's number, which is the guard's process id too."""
        return self.process.pid

    @property
    def output(self) -> IO[bytes]:
        """Standard output and error of the whole group."""
        assert self.process.stdout is not None
        return self.process.stdout

    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for the command's end, and for that of all it started; its exit code."""
        self._ender.join()
        code = self.process.wait()
        self.close()
        return code

    def end(self, grace: float = 0.0) -> None:
        """End the whole group: SIGTERM first if it may take `grace` seconds to stop by itself, then SIGKILL."""
        end_group(self.id, grace)
        self.wait()

    def close(self) -> None:
        """Let go of the pipes and of the record; only after the end."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.record.unlink(missing_ok=True)

    def _end_stragglers(self) -> None:
        # WNOWAIT leaves the guard a zombie, so its number cannot become somebody else's before the group is ended.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, signal.SIGKILL)


def start_group(
    command: list[str],
    *,
    root: Path,
    name: str,
    env: dict[str, str],
    output: IO[bytes] | int = subprocess.PIPE,
) -> Group:
    """Start `command` in `root` under the guard, in a session and process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), *command],
        cwd=root,
        env=env,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    record = root / FOLDER / "groups" / f"{process.pid}.json"
    owner = {"owner": os.getpid(), "owner_created": created(os.getpid())}
    write_json(record, {"group": process.pid, "created": created(process.pid), "name": name, **owner})
    return Group(process, record)


def end_recorded_groups(root: Path, names: Iterable[str] | None = None) -> list[str]:
    """End the groups called `names` of this checkout, or without `names` those whose starter is gone; who was ended.

    A number that belongs to another process by now is left alone: the record holds its leader's time of creation.
    """
    wanted = None if names is None else set(names)
    ended = []
    for record in sorted((root / FOLDER / "groups").glob("*.json")):
        values: Any = read_json(record)
        if not isinstance(values, dict):
            continue
        orphaned = not lives(values["owner"], values["owner_created"])
        if orphaned if wanted is None else values["name"] in wanted:
            # Without its leader a group keeps its number to itself: the kernel gives it to no new process.
            ours = created(values["group"]) is None or lives(values["group"], values["created"])
            if ours and end_group(values["group"]):
                ended.append(values["name"])
            record.unlink(missing_ok=True)
    return ended


def end_group(group: int, grace: float = 0.0) -> bool:
    """End process group `group` and wait until it is gone; False where there was none."""
    if not members(group):
        return False
    deadline = time.monotonic() + grace
    if grace:
        _signal(group, signal.SIGTERM)
        while members(group) and time.monotonic() < deadline:
            time.sleep(0.05)
    deadline = time.monotonic() + _END_SECONDS
    while members(group) and time.monotonic() < deadline:
        _signal(group, signal.SIGKILL)
        time.sleep(0.02)
    return True


def members(group: int) -> list[int]:
    """Process ids in `group` that still run (a zombie does not)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def lives(pid: int, since: float | None) -> bool:
    """Whether `pid` still is the process that was created at `since` (the clock may have been set meanwhile)."""
    now = created(pid)
    return now is not None and since is not None and abs(now - since) < 2


def created(pid: int) -> float | None:
    """When the process `pid` was created, in seconds since the epoch; None where there is none that runs."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    return None
