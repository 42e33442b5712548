"""The machine's places for stages: so many work at once, whichever runs they belong to; a stage that is timed is alone.

Places are locked files in the checkout's `.sparsekd/places/`; the kernel lets go of them with their holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
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
        places = [held.enter_context((folder / str(number)).open("a")) for number in range(count)]
        while not ended():
            entered = _lock(gate, fcntl.LOCK_EX if alone else fcntl.LOCK_SH) and _take(places, alone)
            if not alone:  # only who wants to be alone keeps the gate while places are taken
                fcntl.flock(gate, fcntl.LOCK_UN)
            if entered:
                break
            time.sleep(_POLL_SECONDS)
        yield


def _take(places: Sequence[IO[str]], alone: bool) -> bool:
    """Lock one of `places`, or all that are free (those held already count); whether that is enough."""
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
