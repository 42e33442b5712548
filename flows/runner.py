"""Prefect's runner, which starts the runs that forms and schedules ask for, made to end well on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner


class _Runner(Runner):
    async def start(self, *args: Any, **kwargs: Any) -> None:
        self._main = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        await super().start(*args, **kwargs)

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """End as on Ctrl-C. Prefect's own handler never awaits the end of its runs (prefect 3.8.8)."""
        assert self._main is not None
        self._loop.call_soon_threadsafe(self._main.cancel)


def serve_deployments(deployments: Iterable[RunnerDeployment], ready: Callable[[], None]) -> None:
    """Start their runs, one at a time, until Ctrl-C or SIGTERM; then cancel the one that goes on.

    Schedules stay active meanwhile: the next `sparsekd serve` goes on with them. `ready` is called once Prefect has the
    deployments.
    """
    runner = _Runner(pause_on_shutdown=False, limit=1)
    for deployment in deployments:
        runner.add_deployment(deployment)
    ready()
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(runner.start())
