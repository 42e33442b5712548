"""A sweep's results side by side: the table, the picture, an artifact in Prefect, a parent run in MLflow."""

from __future__ import annotations

import json

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.flow_runs.result import embedded
from flows.sweeps.grid import Plan
from flows.workspaces.history import runs
from flows.workspaces.kept import kept_summary
from flows.workspaces.workspace import experiments
from sparsekd.report import tradeoff
from sparsekd.report.summary import Summary
from sparsekd.report.tradeoff import Result


def compare(plan: Plan, flow_run_id: str | None) -> list[Result]:
    """Write results.json, table.md and trade_off.png of the finished points to the plan's folder, and show them."""
    found = tradeoff.results(summaries(plan))
    if not found:
        return found
    table = tradeoff.markdown(found)
    (plan.folder / "results.json").write_text(json.dumps(tradeoff.to_json(found), indent=2) + "\n")
    (plan.folder / "table.md").write_text(f"{table}\n")
    drawing = tradeoff.picture(found)
    shown = f"\n\n{embedded(drawing.write_png(plan.folder), drawing.alt)}" if drawing else ""
    create_markdown_artifact(key="trade-off", markdown=f"## {plan.name}\n\n{table}{shown}", description=plan.name)
    _track(plan, flow_run_id)
    return found


def summaries(plan: Plan) -> dict[str, Summary]:
    """What the finished points reported, by label, from DVC's cache."""
    kept = experiments(plan.home)
    found = {point.label: kept_summary(plan.home, point.run) for point in plan.points if point.run in kept}
    return {label: summary for label, summary in found.items() if summary}


def _track(plan: Plan, flow_run_id: str | None) -> None:
    """A parent run in MLflow, whose children are the runs of the points. An outage costs a warning."""
    from tasks.tracking.parent import log_parent

    labels = {point.run: point.label for point in plan.points}
    children = {
        labels[record.name]: record.mlflow_run_id
        for record in runs(plan.home)
        if record.name in labels and record.mlflow_run_id
    }
    try:
        log_parent(plan.home, plan.name, list(plan.settings), children, plan.folder, flow_run_id)
    except Exception as error:  # a sweep that is done does not fail for its record
        get_run_logger().warning("MLflow: %s: %s", type(error).__name__, error)
