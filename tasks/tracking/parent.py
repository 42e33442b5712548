"""A sweep in MLflow: one parent run with the table and the picture, whose children are the runs of its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.tracking.store import opened

SWEEP_TAG, LABEL_TAG, _PARENT_TAG = "sparsekd.sweep", "sparsekd.sweep.point", "mlflow.parentRunId"
_SHOWN = ("results.json", "table.md", "trade_off.png")


def log_parent(
    home: Path,
    name: str,
    settings: Sequence[str],
    children: Mapping[str, str],
    folder: Path,
    flow_run_id: str | None = None,
    uri: str | None = None,
) -> str:
    """Log the sweep `name`; the parent run's id. A sweep that is there already is brought up to date.

    `children` maps a point's label to its MLflow run; `folder` holds the sweep's files. Raises what MLflow raises.
    """
    with opened(home, uri) as (client, experiment):
        found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{name}'")
        tags = {SWEEP_TAG: name, "mlflow.source.name": "sparsekd sweep", "prefect.flow_run_id": flow_run_id or ""}
        parent = found[0] if found else client.create_run(experiment, tags=tags, run_name=name)
        run_id = str(parent.info.run_id)
        for setting in settings:  # tags, not parameters: a grid may grow, and MLflow lets no parameter change
            key, _, value = setting.partition("=")
            client.set_tag(run_id, f"sweep.{key.strip()}", value.strip())
        for file in _SHOWN:
            if (folder / file).is_file():
                client.log_artifact(run_id, str(folder / file))
        if (folder / "table.md").is_file():
            client.set_tag(run_id, "mlflow.note.content", (folder / "table.md").read_text())
        for label, child in children.items():
            client.set_tag(child, _PARENT_TAG, run_id)
            client.set_tag(child, LABEL_TAG, label)
        client.set_terminated(run_id, "FINISHED")
        return run_id
