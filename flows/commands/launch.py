"""The flow from the command line: against the server that runs, or with one of its own for as long as it takes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from flows.server.servers import AUTH_VARIABLES, free_port, served_api, start_prefect, wait_for_answer
from flows.workspaces.lock import run_lock
from flows.workspaces.workspace import Workspace
from sparsekd.errors import ConfigError, StageError
from tasks import environment
from tasks.remote import warning_of_run
from tasks.state import read_json
from tasks.tracking.pending import marker_path


def launch(
    root: Path,
    *,
    quiet: bool = False,
    wait: bool = False,
    space: Workspace | None = None,
    given: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Run the flow with params.yaml as it stands; how each stage went ("computed", "unchanged", "restored").

    It works in the checkout at `root`, or in its workspace `space`; `given` is written to params.yaml first. `quiet`
    keeps Prefect's log off the console. Call it in the main thread: see `connected`. Raises StageError naming the stage
    that failed and why.
    """
    environment.apply(root)
    if quiet:
        environment.quiet_console()
    place = root if space is None else space.path
    os.chdir(place)
    with run_lock(place, wait=wait), connected(root):
        from flows.compress import compress

        isolated = {} if space is None else {"isolated": True, "name": space.name}
        state = compress(return_state=True, **isolated, **(given or {}))
    if quiet and (lost := warning_of_run(place)):
        print(f"warning: {lost}", file=sys.stderr, flush=True)
    outcome = outcome_of(state)
    if quiet and isinstance(waiting := read_json(marker_path(root)), dict):
        print(
            f"warning: MLflow did not log the run ({waiting['reason']}). Nothing is lost: the next run logs it, or "
            f"`{waiting['next']}`.",
            file=sys.stderr,
            flush=True,
        )
    return dict(outcome)


def outcome_of(state: Any) -> Any:
    """What a flow run gave, or nothing. Raises its own error, or StageError with the state that it ended in."""
    if state.is_completed() and state.data is None:
        # The server had it, but its answer was lost on a busy machine: asked again it gives the state alone
        return {}
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, BaseException):
        raise outcome
    if not state.is_completed():
        raise StageError(f"The flow ended in state {state.name}: {state.message}")
    return outcome


@contextlib.contextmanager
def connected(root: Path) -> Iterator[None]:
    """A Prefect API for the block: that of PREFECT_API_URL, or of a running `sparsekd serve`, else one of its own.

    SIGTERM is raised in it as an exception, so that what the block started is ended and its flow run is closed.
    """
    with sigterm_raises(), _api(root):
        yield


@contextlib.contextmanager
def _api(root: Path) -> Iterator[None]:
    """Set PREFECT_API_URL for the block."""
    named = os.environ.get("PREFECT_API_URL")
    whose = "PREFECT_API_URL" if named else "The address of `sparsekd serve`"
    named = named or served_api(root)
    server = None
    if named is None:
        server = start_prefect(root, free_port(), ui=False)
        named = f"{server.url}/api"
    elif not wait_for_answer(f"{named.rstrip('/')}/health"):
        raise ConfigError(f"{whose} is {named}, where no Prefect server answers; start it, or unset or end it.")
    try:
        if server is not None:
            server.wait_until_ready("/api/health")
        os.environ["PREFECT_API_URL"] = named
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        known = {PREFECT_API_URL: named}
        if password := os.environ.get(AUTH_VARIABLES[1]):
            known[PREFECT_API_AUTH_STRING] = password
        with temporary_settings(known):  # Prefect may have been imported, and settled, before
            yield
    finally:
        if server is not None:
            _send_what_waits()
            os.environ.pop("PREFECT_API_URL", None)
            server.end()


def _send_what_waits() -> None:
    """Let Prefect send its last log lines and events now: without their server it would try for a minute at exit."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=5)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, through its `finally` blocks. Prefect has its own while a flow runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    launch(environment.checkout_root())
