"""One run at a time in a checkout: an exclusive lock that the kernel lets go of with its holder, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsekd.errors import StageError
from tasks.state import FOLDER, read_json

_POLL_SECONDS = 0.5
_held: dict[Path, int] = {}
_guard = threading.Lock()


@dataclass(frozen=True)
class Holder:
    """Who holds the checkout: process, what it is called, and since when (seconds since the epoch)."""

    pid: int
    command: str
    started: float

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.started))
        return f"`{self.command}` (process {self.pid}, since {since})"


@contextlib.contextmanager
def run_lock(
    root: Path,
    *,
    wait: bool = False,
    command: str | None = None,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Hold the checkout at `root` for one run; within one process it may be taken again, by any thread.

    Raises StageError naming the holder when another process has it, unless `wait`: then `on_wait` is told once and
    the call returns when the other run has ended. `command` is what the others are told; by default our command line.
    """
    path = (root / FOLDER / "run.lock").absolute()
    if _taken_again(path):
        try:
            yield
        finally:
            with _guard:
                _held[path] -= 1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, path, wait, on_wait)
        holder = Holder(os.getpid(), command or _command_line(), time.time())
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        with _guard:
            _held[path] = 1
        try:
            yield
        finally:
            with _guard:
                _held.pop(path)
            os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


def held_here(root: Path) -> bool:
    """Whether this process holds the place at `root`."""
    with _guard:
        return (root / FOLDER / "run.lock").absolute() in _held


def current_holder(root: Path) -> Holder | None:
    """Who holds the checkout at `root` now, or None."""
    path = root / FOLDER / "run.lock"
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read_holder(path)
    finally:
        os.close(descriptor)


def _taken_again(path: Path) -> bool:
    with _guard:
        if path not in _held:
            return False
        _held[path] += 1
        return True


def _acquire(descriptor: int, path: Path, wait: bool, on_wait: Callable[[str], None]) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _read_holder(path) or "another run"
            if not wait:
                raise StageError(
                    f"{holder} is running in this checkout; one run at a time. Let it end, stop it, or add --wait to "
                    "start after it."
                ) from None
            if not told:
                on_wait(f"waiting for {holder} to end")
                told = True
            time.sleep(_POLL_SECONDS)


def _read_holder(path: Path) -> Holder | None:
    values = read_json(path)
    with contextlib.suppress(TypeError):
        return Holder(**values) if isinstance(values, dict) else None
    return None


def _command_line() -> str:
    return " ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])
