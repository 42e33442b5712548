"""A command of ours beside a flow: in a process group under the guard, with a log, and its own reason when it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sparsekd.errors import StageError
from tasks import environment
from tasks.groups import start_group

_POLL_SECONDS = 0.5


def run_child(
    arguments: list[str],
    *,
    root: Path,
    name: str,
    log: Path,
    variables: Mapping[str, str] | None = None,
    on_poll: Callable[[], None] = lambda: None,
    grace: float = 0.0,
) -> None:
    """Run `python -m arguments…` in `root` as the recorded group `name`; everything that it prints goes to `log`.

    It is a process of its own to Prefect too: no variable of the flow run that calls this reaches it. `on_poll` is
    called twice a second; what it raises ends the group, which has `grace` seconds to stop by itself. Raises StageError
    with the last `error:` line where the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT__")}
    with log.open("wb") as output:
        command = [environment.python(), "-m", *arguments]
        group = start_group(command, root=root, name=name, env={**clean, **(variables or {})}, output=output)
        try:
            while group.running():
                time.sleep(_POLL_SECONDS)
                on_poll()
            code = group.wait()
        except BaseException:
            group.end(grace)
            raise
    if code != 0:
        lines = log.read_text(errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise StageError(said[-1] if said else f"The run ended with code {code}.")
