"""How often a run may start: one that a crash ended goes on elsewhere, but not for ever."""

from __future__ import annotations

import os
from pathlib import Path

from sparsekd.errors import ConfigError, StageError
from tasks.process import CHECKPOINTS_VARIABLE

VARIABLE = "SPARSEKD_ATTEMPTS"
_DEFAULT = 3


def attempts_allowed() -> int:
    """So many times a run may start. Raises ConfigError for a bad value of the variable."""
    text = os.environ.get(VARIABLE, str(_DEFAULT))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"{VARIABLE} is {text!r}; it must be a number of starts from 1 up. Unset it for {_DEFAULT}.")
    return int(text)


def going_on(attempt: int, root: Path) -> str | None:
    """What to say at the start of this attempt (from 1); nothing at the first one.

    Raises StageError when there have been enough: what crashes each time, for lack of memory say, would go on for ever.
    """
    allowed = attempts_allowed()
    if attempt > allowed:
        raise StageError(
            f"The run has crashed {attempt - 1} times, which is as often as {VARIABLE} allows. Most likely the memory "
            "ran out or its machine died; see the logs of its attempts, mend that, and start a new run."
        )
    if attempt <= 1:
        return None
    folder = Path(os.environ.get(CHECKPOINTS_VARIABLE, root / ".checkpoints"))
    if any(folder.glob("*/*/step-*")):
        where = f"an interrupted stage goes on from its checkpoint in {folder}"
    else:
        where = f"no checkpoint is in {folder}, so an interrupted stage starts from its beginning"
    return (
        f"Attempt {attempt} of {allowed}: the one before was lost. Finished stages are restored where this machine or "
        f"the DVC remote has them; {where}."
    )
