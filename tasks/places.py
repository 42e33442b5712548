"""The machine's places for stages: so many work at once, whichever runs they belong to; a stage that is timed is alone.

Places are locked files in the checkout's `.sparsekd/places/`; the kernel lets go of them with their holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tasks.state import FOLDER

_POLL_SECONDS = 0.25


@contextlib.contextmanager
def place(home: Path, count: int, alone: bool, ended: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """One of the `count` places of the checkout at `home`, or all of them if `alone`; returns early once `ended`.

    Who wants to be alone closes the gate first: what runs ends, nothing new starts before it has been alone.
    """
    folder = home / FOLDER / "places"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        gate = held.enter_context((folder / "gate").open("a"))
        while not ended() and not _lock(gate, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            time.sleep(_POLL_SECONDS)
        free = [held.enter_context((folder / str(number)).open("a")) for number in range(count)]
        while not ended() and not _take(free, alone):
            if not alone:  # the gate must not stay open for as long as all places are taken
                fcntl.flock(gate, fcntl.LOCK_UN)
            time.sleep(_POLL_SECONDS)
            while not alone and not ended() and not _lock(gate, fcntl.LOCK_SH):
                time.sleep(_POLL_SECONDS)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def _take(places: list[IO[str]], alone: bool) -> bool:
    """Lock one of `places`, or all that are not locked yet; whether that is enough."""
    taken = 0
    for file in places:
        if _lock(file, fcntl.LOCK_EX):
            taken += 1
            if not alone:
                return True
    return taken == len(places)


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
