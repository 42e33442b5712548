"""The runner behind `sparsekd serve` while the Prefect server is away, and once it is back."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect._internal.observers import FlowRunCancellingObserver

from flows.server import runner as module

RUN = uuid.uuid4()


class Server:
    """Answers that RUN is to be cancelled, or is away."""

    def __init__(self) -> None:
        self.away = True
        self.asked = 0

    async def read_flow_runs(self, **_: Any) -> list[Any]:
        self.asked += 1
        if self.away:
            raise httpx.ConnectError("All connection attempts failed")
        return [SimpleNamespace(id=RUN)]


async def _lose_and_find(server: Server) -> list[uuid.UUID]:
    """Prefect's observer has lost its connection and asks every 50 ms; what it is told to cancel."""
    cancelled: list[uuid.UUID] = []
    runner: Any = module._Runner()
    observer: Any = FlowRunCancellingObserver(cancelled.append, polling_interval=0.05)
    runner._cancelling_observer, runner._client, observer._client = observer, server, server
    observer.add_in_flight_flow_run_id(RUN)
    hearing = asyncio.create_task(runner._hear_of_cancellations())
    await asyncio.sleep(0.1)

    async def lost() -> None:
        raise ConnectionError

    observer._consumer_task = asyncio.create_task(lost())
    observer._consumer_task.add_done_callback(observer._start_polling_task)
    while server.asked < 40:
        await asyncio.sleep(0.01)
    assert observer._polling_task.cancelled()
    server.away = False
    while not cancelled:
        await asyncio.sleep(0.01)
    hearing.cancel()
    await observer.__aexit__(None, None, None)
    await asyncio.wait([hearing])
    return cancelled


def test_a_cancellation_is_heard_however_long_the_server_was_away(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    assert asyncio.run(_lose_and_find(Server())) == [RUN]
    printed = caplog.text + "".join(capfd.readouterr())
    assert "Failed the last" not in printed
    assert "cancellation will fail" not in printed
    assert "Exception in callback" not in printed
