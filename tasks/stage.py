"""The one Prefect task: it runs a named stage of dvc.yaml through DVC (tasks/repro.py) and shows what came of it."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Cancelled, Completed, Failed

from sparsekd.errors import SparseKDError, StageError
from tasks.content import content_lock
from tasks.graph import StageSpec, stages_behind, upstream
from tasks.groups import end_recorded_groups
from tasks.places import place
from tasks.remote import Remote
from tasks.repro import StageResult, reproduce
from tasks.state import progress_path, read_json

_PROGRESS_SECONDS = 15.0
_KEPT_SECONDS = 2.0
_NETWORK = re.compile(
    r"timed? ?out|connection|temporar|unreachable|cannot be reached|\b(429|500|502|503|504)\b", re.IGNORECASE
)
_CACHED = {"unchanged": "nothing it depends on has changed", "restored": "restored from DVC's cache"}


class Run:
    """What the stages of one run share. Not a dataclass: Prefect copies those when they are a task's parameter."""

    def __init__(
        self,
        root: Path,
        graph: dict[str, StageSpec],
        side_by_side: int,
        home: Path | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.root = root
        self.home = home or root
        """The checkout whose places it takes; `root` itself, or the one that `root` is a workspace of."""
        self.graph = graph
        self.remote = remote
        self.stopping = threading.Event()
        self.failures: dict[str, SparseKDError] = {}
        self._free = threading.Condition()
        self._side_by_side = side_by_side
        self._stages_behind = stages_behind(graph)
        self._waiting: set[str] = set()
        self._running: set[str] = set()
        self._done: set[str] = set()
        self._expected: dict[str, float] = {}
        """Stages whose inputs have just become whole, until when their place is kept for them."""

    @contextlib.contextmanager
    def slot(self, spec: StageSpec) -> Iterator[None]:
        """One of the places for stages side by side, in this run and on the machine; all of them for one that is alone.

        Of those that wait, the one with most stages behind it goes first, so that the longest chain never waits for
        a stage that only the report needs.
        """
        with self._free:
            self._waiting.add(spec.name)
            while not (self.ended() or self._has_place(spec)):
                self._free.wait(timeout=_KEPT_SECONDS)
            self._waiting.discard(spec.name)
            self._expected.pop(spec.name, None)
            self._running.add(spec.name)
            self._free.notify_all()
        try:
            with place(self.home, self._side_by_side, spec.alone, self.ended):
                yield
        finally:
            with self._free:
                self._running.discard(spec.name)
                self._done.add(spec.name)
                self._expect_what_became_ready(spec)
                self._free.notify_all()

    def fail(self, stage: str, error: SparseKDError) -> None:
        """Note why `stage` failed: what runs beside it may end, nothing more starts."""
        with self._free:
            self.failures[stage] = error
            self._free.notify_all()

    def stop(self) -> None:
        """End every running stage now; none starts any more."""
        self.stopping.set()
        if self.remote is not None:
            self.remote.stop()
        with self._free:
            self._free.notify_all()
        end_recorded_groups(self.root, self.graph)

    def why_not(self) -> str | None:
        """Why no further stage may start, or None."""
        if self.stopping.is_set():
            return "the run was stopped"
        return f"stage {next(iter(self.failures))} failed" if self.failures else None

    def ended(self) -> bool:
        """Whether no further stage starts."""
        return self.stopping.is_set() or bool(self.failures)

    def _has_place(self, spec: StageSpec) -> bool:
        if any(self.graph[name].alone for name in self._running):
            return False
        if spec.alone:  # timings need the machine
            return not self._running
        return len(self._running) < self._side_by_side and not self._more_urgent(spec)

    def _more_urgent(self, spec: StageSpec) -> bool:
        now = time.monotonic()
        rivals = self._waiting | {name for name, until in self._expected.items() if now < until}
        behind = self._stages_behind
        return any(behind[name] > behind[spec.name] and not self.graph[name].alone for name in rivals)

    def _expect_what_became_ready(self, ended: StageSpec) -> None:
        """Prefect takes a moment to start what waited for `ended`; a lesser stage would take its place meanwhile."""
        for name, spec in self.graph.items():
            needed = upstream(spec, self.graph)
            if ended.name in needed and self._done.issuperset(needed):
                self._expected[name] = time.monotonic() + _KEPT_SECONDS


def stage_task(spec: StageSpec) -> Any:
    """The Prefect task for one stage: its name and text in the UI, retries only where the network is used.

    No tags: for each tag Prefect asks its server for a concurrency slot, and on SQLite two tasks that ask at once make
    one wait for 2 s.
    """
    fetches = spec.name.startswith("fetch")
    return _run_stage.with_options(
        name=spec.name,
        task_run_name=spec.name,
        description=spec.description,
        retries=2 if fetches else 0,
        retry_delay_seconds=[5, 30] if fetches else 0,
    )


@task(name="stage", cache_policy=NO_CACHE, persist_result=False)
def _run_stage(name: str, run: Run) -> State[StageResult] | State[Any]:
    spec = run.graph[name]
    logger = get_run_logger()
    try:
        # The content first: who waits for another run's result must not keep a place from those that work
        with content_lock(run.root, spec, logger.info, run.ended), run.slot(spec):
            if reason := run.why_not():
                return Cancelled(name="NotRun", message=f"Not started: {reason}.")
            with _progress_in_log(run.root, name, logger):
                result = reproduce(run.root, spec, lambda line: _log(logger, line), run.stopping, run.remote)
    except SparseKDError as error:
        if _worth_retrying(error) and not run.stopping.is_set():
            raise
        run.fail(name, error)
        return Failed(message=str(error), data=error)
    except Exception as error:
        run.fail(name, StageError(f"Stage {name} failed: {type(error).__name__}: {error}"))
        raise
    if run.remote is not None:
        run.remote.offer(spec)
    if result.outcome == "computed":
        return Completed(message=f"Computed in {result.seconds:.0f} s.", data=result)
    return Completed(name="Cached", message=f"Not computed: {_CACHED[result.outcome]}.", data=result)


def _worth_retrying(error: SparseKDError) -> bool:
    """Whether attempts are left (only stages that fetch have any) and the network may be to blame."""
    context = TaskRunContext.get()
    assert context is not None
    return context.task_run.run_count <= context.task.retries and bool(_NETWORK.search(str(error)))


def _log(logger: Any, line: str) -> None:
    level = logging.WARNING if line.startswith("warning:") else logging.ERROR if line.startswith("error:") else 20
    logger.log(level, line)


@contextlib.contextmanager
def _progress_in_log(root: Path, stage: str, logger: Any) -> Iterator[None]:
    """Put the stage's progress in the run's log now and then: who watches in a browser has no live bar."""
    ended = threading.Event()

    def watch() -> None:
        shown = None
        while not ended.wait(_PROGRESS_SECONDS):
            report = read_json(progress_path(root, stage))
            if isinstance(report, dict) and report != shown:
                shown = report
                logger.info(_describe(report))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _describe(report: dict[str, Any]) -> str:
    figures = {key: value for key, value in report.items() if key not in {"stage", "done", "total", "unit"}}
    text = "".join(f", {name} {value:.4g}" for name, value in figures.items())
    return f"{report['done']:,.0f} of {report['total']:,.0f} {report['unit']}{text}"
