"""The flow `evaluate`: measure any checkpoint as `sparsekd evaluate` does, with the result in Prefect and MLflow."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.runtime import flow_run as this_run  # noqa: E402
from prefect.states import Failed  # noqa: E402

from flows.flow_runs.apart import COMMAND_FLOW, run_command  # noqa: E402
from flows.flow_runs.holding import name_run  # noqa: E402
from flows.flow_runs.hooks import begin  # noqa: E402
from flows.settings import params  # noqa: E402
from flows.settings.confined import check_confined, check_source  # noqa: E402
from flows.settings.params import PresetName  # noqa: E402
from sparsekd.errors import SparseKDError  # noqa: E402
from sparsekd.evaluation.results import Evaluation  # noqa: E402


@flow(name="evaluate", **COMMAND_FLOW)
def evaluate(
    model: str,
    dense: str | None = None,
    preset: PresetName = "default",
    settings: list[str] = [],  # noqa: B006 - Prefect's form shows it, nobody changes it
    max_late: float | None = None,
) -> Any:
    """Measure a checkpoint: test perplexity, lm-eval tasks and, with `dense`, agreement with that model.

    Nothing is compressed and no DVC stage runs. The table is an artifact of this flow run, the figures an MLflow run.

    Args:
        model: owner/name on the hub, a directory, or a catalogue name.
        dense: The uncompressed model, to measure agreement with it.
        preset: How thorough to be.
        settings: As `stage.key=value`, over the preset.
        max_late: A scheduled run that starts so many minutes after its time is skipped.
    """
    home = environment.checkout_root()
    try:
        if (late := begin(home, max_late)) is not None:
            return late
        return _evaluate(home, model, dense, preset, settings)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _evaluate(home: Path, model: str, dense: str | None, preset: str, settings: list[str]) -> dict[str, Any]:
    logger = get_run_logger()
    os.chdir(home)  # relative paths start here
    config = params.with_settings(params.load_preset(preset, home), settings, "the settings")
    check_confined(config)
    for setting, source in {"model": model, **({"dense": dense} if dense else {})}.items():
        check_source(setting, source)
    name = f"evaluate-{Path(model).name}-{time.strftime('%m%d-%H%M%S')}"
    name_run(this_run.id, name)
    arguments = [f"--model={model}", f"--preset={preset}", *(f"--set={setting}" for setting in settings)]
    arguments += [f"--dense={dense}"] if dense is not None else []
    out = run_command(home, "evaluate", arguments)
    found = Evaluation.model_validate_json((out / "evaluation.json").read_text())
    create_markdown_artifact(key="evaluation", markdown=f"## {name}\n\n{table(found)}", description=model)
    logger.info("The files are in %s.", out.relative_to(home))
    _track(home, name, {"model": model, "dense": dense or "", "preset": preset}, found, out)
    return dict(json.loads(found.to_json()))


def table(found: Evaluation) -> str:
    """What was measured, as Markdown."""
    lines = ["| | value | 95 % interval |", "|---|---:|---:|"]
    for corpus, perplexity in found.perplexity.items():
        lines.append(
            f"| perplexity {corpus} | {perplexity.value:.2f} | {perplexity.low:.2f} to {perplexity.high:.2f} |"
        )
    for corpus, agreement in found.agreement.items():
        kl = agreement.kl
        lines.append(f"| KL to dense {corpus}, nats | {kl.value:.4f} | {kl.low:.4f} to {kl.high:.4f} |")
    for task, score in found.tasks.items():
        error = "" if score.stderr is None else f"± {score.stderr:.3f} (standard error)"
        lines.append(f"| {task} ({score.metric}, {score.n} rows) | {score.value:.3f} | {error} |")
    return "\n".join(lines)


def _track(home: Path, name: str, settings: dict[str, str], found: Evaluation, out: Path) -> None:
    """A run in MLflow. An outage costs a warning."""
    from tasks.tracking.evaluation import log_evaluation

    try:
        log_evaluation(home, name, settings, found, out, str(this_run.id))
    except Exception as error:  # an evaluation that is done does not fail for its record
        get_run_logger().warning("MLflow: %s: %s", type(error).__name__, error)
