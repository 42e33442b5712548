"""What a Prefect server does with a run whose machine died: seen as crashed, and started again elsewhere.

By itself Prefect recovers nothing: such a run stays Running for ever. `sparsekd serve` sets these automations up on its
own server, `python -m flows.server.automations` does on the one at PREFECT_API_URL. They concern runs with the tag
*sparsekd* only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect.client.orchestration import SyncPrefectClient, get_client  # noqa: E402
from prefect.client.schemas.filters import (  # noqa: E402
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType  # noqa: E402
from prefect.events.actions import ChangeFlowRunState  # noqa: E402
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture  # noqa: E402
from prefect.states import AwaitingRetry  # noqa: E402

from flows.flow_runs.attempts import attempts_allowed  # noqa: E402
from flows.server.deployments import TAG  # noqa: E402
from flows.server.servers import answers  # noqa: E402

_RUN = "prefect.flow-run."
_ENDED = {f"{_RUN}{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Paused")}
_SCHEDULED = {f"{_RUN}{state}" for state in ("Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot", "Late")}
SILENT_SECONDS = 75
"""Two heartbeats missed: so long a run may say nothing before it is taken for dead."""
STARTING_SECONDS = 120
"""So long a run may take from being taken by a worker to its first step, an image that is pulled included."""
REST_SECONDS = 15
"""Between a crash and the next attempt. A worker that reports the crash itself does not bear it sooner."""
_CRASHES_WITHIN = timedelta(hours=1)
_REMEMBERED = timedelta(days=1)
_LOOK_SECONDS = 30.0
_AGAIN = "It starts again after a crash."


def wanted() -> list[AutomationCore]:
    """The automations, as they shall be on the server."""
    crashed = ChangeFlowRunState(state=StateType.CRASHED, message="Its process or its machine is gone.")
    stuck = ChangeFlowRunState(state=StateType.CRASHED, message="It did not start: its worker is gone or too slow.")
    again = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=_AGAIN)
    allowed = attempts_allowed()
    given_up = ChangeFlowRunState(
        state=StateType.FAILED,
        message=f"It crashed {allowed + 1} times within an hour, before it could work; the log of its worker says why.",
        force=True,
    )
    return [
        _missing(
            "silent runs have crashed", crashed, {f"{_RUN}heartbeat"}, _ENDED | _SCHEDULED | {f"{_RUN}heartbeat"},
            SILENT_SECONDS, "A run that has missed two signs of life",
        ),
        _missing(
            "runs that do not start have crashed", stuck, {f"{_RUN}Pending", f"{_RUN}Submitting"},
            _ENDED | _SCHEDULED | {f"{_RUN}Running", f"{_RUN}Retrying"},
            STARTING_SECONDS, "A run that a worker has taken and not started",
        ),
        _missing(
            "crashed runs start again", again, {f"{_RUN}Crashed"}, (_ENDED - {f"{_RUN}Crashed"}) | _SCHEDULED,
            REST_SECONDS, "A crashed run is scheduled again, for whichever worker is free",
        ),
        AutomationCore(
            name=f"{TAG}: runs that only crash are given up",
            description="A run that crashes again and again before its flow can count its attempts.",
            trigger=EventTrigger(
                expect={f"{_RUN}Crashed"}, threshold=allowed + 1, within=_CRASHES_WITHIN, **_each_of_ours()
            ),
            actions=[given_up],
        ),
    ]  # fmt: skip


def _missing(
    name: str, action: ChangeFlowRunState, after: set[str], expect: set[str], seconds: float, why: str
) -> AutomationCore:
    """Act when none of `expect` has come within `seconds` of one of `after`."""
    trigger = EventTrigger(
        posture=Posture.Proactive,
        after=after,
        expect=expect,
        threshold=1,
        within=timedelta(seconds=seconds),
        **_each_of_ours(),
    )
    return AutomationCore(name=f"{TAG}: {name}", description=f"{why}.", trigger=trigger, actions=[action])


def _each_of_ours() -> dict[str, Any]:
    """Each run by itself, and only those of our deployments: nobody would start a run of the command line again."""
    return {
        "match": {"prefect.resource.id": f"{_RUN}*"},
        "match_related": {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
        "for_each": {"prefect.resource.id"},
    }


def ensure() -> list[str]:
    """Create what is missing on the server and mend what differs; a line for each that was touched."""
    with get_client(sync_client=True) as client:
        return [line for automation in wanted() if (line := _ensure(client, automation))]


def _ensure(client: SyncPrefectClient, automation: AutomationCore) -> str:
    found = client.read_automations_by_name(automation.name)
    kept = 1 if found and _same(found[0], automation) else 0  # a new one would forget which runs it waits for
    for old in found[kept:]:
        client.delete_automation(old.id)
    if kept:
        return ""
    client.create_automation(automation)  # also for an update: the server refuses those that this client sends
    return f"{'updated' if found else 'created'}   {automation.name}"


def keep_going(ended: threading.Event) -> None:
    """Start again, until `ended`, what crashed and what no automation has seen."""
    while not ended.wait(_LOOK_SECONDS):
        with contextlib.suppress(Exception):  # a busy server: the next round does it
            start_again(timedelta(seconds=_LOOK_SECONDS))


def start_again(after: timedelta = timedelta(0)) -> list[str]:
    """Schedule anew the runs that have stood as crashed for longer than `after`; a line for each.

    A server that was down itself marks a dead run as crashed in its first seconds, before it listens to the event that
    would start it again (prefect 3.8.8), and hears of none from the time when it was down.
    """
    now = datetime.now(UTC)
    crashed = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[TAG]),
        deployment_id=FlowRunFilterDeploymentId(is_null_=False),  # nobody would start one of the command line again
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
        end_time=FlowRunFilterEndTime(after_=now - _REMEMBERED, before_=now - after),
    )
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=crashed)
        for run in found:
            client.set_flow_run_state(run.id, AwaitingRetry(message=_AGAIN), force=True)
    return [f"again     {run.name}" for run in found]


def _same(present: AutomationCore, automation: AutomationCore) -> bool:
    return all(
        getattr(present, field) == getattr(automation, field)
        for field in ("description", "enabled", "trigger", "actions")
    )


def main() -> None:
    """Set them up on the server at PREFECT_API_URL and say what that changed."""
    address = os.environ.get("PREFECT_API_URL", "")
    if not address or not answers(f"{address.rstrip('/')}/health"):
        sys.exit(
            f"error: PREFECT_API_URL is {address!r}; it must be the address of a server that answers, ending in /api."
        )
    print("\n".join([*(ensure() or ["All automations are there."]), *start_again()]))


if __name__ == "__main__":
    main()
