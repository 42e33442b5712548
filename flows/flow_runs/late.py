"""Scheduled runs that come too late: after ten missed times one run computes, not ten.

Prefect has no setting for this: a server or worker that comes back starts every run that was missed, oldest first.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun, StateType

_OF_NO_USE = {StateType.FAILED, StateType.CRASHED, StateType.CANCELLED, StateType.CANCELLING, StateType.PAUSED}


def why_skipped(flow_run_id: str | None, max_late: float | None) -> str | None:
    """Why the run has come too late to compute anything, or None. Only runs that a schedule made can.

    It is too late when it starts more than `max_late` minutes after its time, or when a later run of the same
    schedule is due already, whose result is at least as new.
    """
    if flow_run_id is None:
        return None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run_id))
        due = run.expected_start_time
        if not run.auto_scheduled or run.run_count > 1 or due is None or run.deployment_id is None:
            return None  # asked for by a person, or going on after a crash
        late = _now() - due
        if max_late is not None and late > timedelta(minutes=max_late):
            return f"it starts {_minutes(late)} after its time, more than max_late = {max_late:g}"
        others = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                expected_start_time=FlowRunFilterExpectedStartTime(after_=due, before_=_now())
            ),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
        )
    newer = [other for other in others if _computes(other, due)]
    if newer:
        return f"the run of {max(map(_due, newer)).astimezone():%H:%M} of the same schedule is due or done too"
    return None


def _computes(other: FlowRun, due: datetime) -> bool:
    return other.auto_scheduled and other.state_type not in _OF_NO_USE and _due(other) > due


def _due(run: FlowRun) -> datetime:
    return run.expected_start_time or datetime.min.replace(tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC)


def _minutes(late: timedelta) -> str:
    return f"{late.total_seconds() / 60:.0f} minutes"
