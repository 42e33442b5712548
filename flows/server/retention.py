"""Old flow runs leave Prefect's database, with their logs and artifacts: Prefect has no clean-up of its own.

What a run made stays: it is in DVC's cache, in git and in MLflow.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterEndTime,
)

_EVERY_SECONDS = 3600.0
_AT_ONCE = 100


def keep_clean(days: float, ended: threading.Event) -> None:
    """Remove what is older than `days`, now and once an hour, until `ended`."""
    while True:
        try:
            remove_older(days)
        except Exception as error:  # a busy server: the next round does it
            print(f"warning: old flow runs could not be removed: {error}", flush=True)
        if ended.wait(_EVERY_SECONDS):
            return


def remove_older(days: float) -> int:
    """Remove the flow runs that ended more than `days` ago, their logs and artifacts; how many runs."""
    before = datetime.now(UTC) - timedelta(days=days)
    wanted = FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))
    removed = 0
    with get_client(sync_client=True) as client:
        while found := client.read_flow_runs(flow_run_filter=wanted, limit=_AT_ONCE):
            for run in found:
                _remove_artifacts(client, ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id])))
                client.delete_flow_run(run.id)  # the server removes its logs with it
            removed += len(found)
    return removed


def _remove_artifacts(client: SyncPrefectClient, wanted: ArtifactFilter) -> None:
    while found := client.read_artifacts(artifact_filter=wanted, limit=_AT_ONCE):
        for artifact in found:
            client.delete_artifact(artifact.id)
