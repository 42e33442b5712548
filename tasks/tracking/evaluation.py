"""The evaluation of a single checkpoint as an MLflow run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from sparsekd.evaluation.results import Evaluation
from tasks.tracking.record import metric_name
from tasks.tracking.store import opened


def log_evaluation(
    home: Path,
    name: str,
    settings: Mapping[str, str],
    found: Evaluation,
    files: Path,
    flow_run_id: str | None = None,
    uri: str | None = None,
) -> str:
    """Log it, with the `files` that it wrote; the run's id. Raises what MLflow raises."""
    with opened(home, uri) as (client, experiment):
        tags = {"mlflow.source.name": "sparsekd evaluate", "prefect.flow_run_id": flow_run_id or ""}
        run = client.create_run(experiment, tags=tags, run_name=name)
        run_id = str(run.info.run_id)
        for key, value in settings.items():
            client.log_param(run_id, key, value)
        for key, figure in _figures(found):
            client.log_metric(run_id, metric_name(key), figure)
        client.log_artifacts(run_id, str(files), "evaluation")
        client.set_terminated(run_id, "FINISHED")
        return run_id


def _figures(found: Evaluation) -> Iterator[tuple[str, float]]:
    yield "parameters/total", found.parameters["total"]
    for corpus, perplexity in found.perplexity.items():
        yield f"perplexity/{corpus}", perplexity.value
    for corpus, agreement in found.agreement.items():
        yield f"agreement/{corpus}_kl", agreement.kl.value
        yield f"agreement/{corpus}_top1", agreement.top1.value
    for task, score in found.tasks.items():
        yield f"tasks/{task}", score.value
