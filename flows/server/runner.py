"""Prefect's runner, which starts the runs that forms and schedules ask for, made to end well on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner

_LOOK_SECONDS = 2.0


class _Runner(Runner):
    async def start(self, *args: Any, **kwargs: Any) -> None:
        self._main = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._hear_of_cancellations())
        try:
            await super().start(*args, **kwargs)
        finally:
            looking.cancel()

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """End as on Ctrl-C. Prefect's own handler never awaits the end of its runs (prefect 3.8.8)."""
        assert self._main is not None
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._main.cancel)

    async def _hear_of_cancellations(self) -> None:
        """Cancel what is to be cancelled after the server was away.

        Prefect's observer listens to events. Once that has failed it asks every 10 s, and after three vain questions
        never again (3.8.8): it prints stack traces, and no run could be cancelled until the end of this process.
        """
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if (observer := self._cancelling_observer) is None:
                continue
            observer.on_failure = None  # nothing is lost with it
            if observer._consumer_task is not None and not observer._consumer_task.done():
                continue
            if (asking := observer._polling_task) is not None:  # what follows asks in its place
                asking.remove_done_callback(observer._handle_polling_task_done)  # fails where the task was cancelled
                asking.cancel()
            with contextlib.suppress(Exception):  # the server is still away: the next round asks again
                mine = observer._in_flight_flow_run_ids - observer._cancelling_flow_run_ids
                wanted = FlowRunFilter(
                    id=FlowRunFilterId(any_=list(mine)),
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING])),
                )
                for run in await self._client.read_flow_runs(flow_run_filter=wanted) if mine else []:
                    observer._cancelling_flow_run_ids.add(run.id)
                    observer.on_cancelling(run.id)


def serve_deployments(deployments: Iterable[RunnerDeployment], ready: Callable[[], None]) -> None:
    """Start their runs, one at a time, until Ctrl-C or SIGTERM; then cancel the one that goes on.

    Schedules stay active meanwhile: the next `sparsekd serve` goes on with them. `ready` is called once Prefect has the
    deployments.
    """
    # At the end Prefect shows a stack trace for a connection that was lost hours ago and that _Runner makes up for
    logging.getLogger("prefect.FlowRunCancellingObserver").setLevel(logging.ERROR)
    runner = _Runner(pause_on_shutdown=False, limit=1)
    for deployment in deployments:
        runner.add_deployment(deployment)
    ready()
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(runner.start())
