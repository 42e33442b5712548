"""The flow: params.yaml is settled, then every stage of dvc.yaml runs as a Prefect task, in dvc.yaml's order.

Prefect shows, orders and starts; DVC decides what has to be computed; each stage computes in a process of its own. A
run works in the checkout, or isolated: in a workspace of its own, from which it is kept as a DVC experiment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tasks import environment, prefect_log

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import flow, get_run_logger  # noqa: E402
from prefect.client.schemas.objects import State  # noqa: E402
from prefect.runtime import flow_run as this_run  # noqa: E402
from prefect.states import Failed  # noqa: E402

from flows.flow_runs.holding import close_unfinished, note_run  # noqa: E402
from flows.flow_runs.hooks import STAGES_FLOW, begin, ended  # noqa: E402
from flows.flow_runs.orphan import end_with_parent  # noqa: E402
from flows.flow_runs.result import gate_of  # noqa: E402
from flows.settings import settle  # noqa: E402
from flows.stages import run_stages, show_and_track  # noqa: E402
from flows.workspaces.isolated import run_isolated  # noqa: E402
from flows.workspaces.lock import run_lock  # noqa: E402
from sparsekd.config import (  # noqa: E402
    Benchmark,
    Calibrate,
    Distill,
    Evaluate,
    Export,
    Gate,
    Model,
    Prune,
    Report,
    RunConfig,
    Runtime,
    Section,
    Teacher,
    Texts,
)
from sparsekd.errors import SparseKDError  # noqa: E402
from tasks.repair import repair  # noqa: E402

prefect_log.shorten()
_DEFAULTS = RunConfig()


@flow(name="compress", **STAGES_FLOW)
def compress(
    runtime: Runtime = _DEFAULTS.runtime,
    model: Model = _DEFAULTS.model,
    texts: Texts = _DEFAULTS.texts,
    calibrate: Calibrate = _DEFAULTS.calibrate,
    teacher: Teacher = _DEFAULTS.teacher,
    prune: Prune = _DEFAULTS.prune,
    distill: Distill = _DEFAULTS.distill,
    evaluate: Evaluate = _DEFAULTS.evaluate,
    benchmark: Benchmark = _DEFAULTS.benchmark,
    gate: Gate = _DEFAULTS.gate,
    export: Export = _DEFAULTS.export,
    report: Report = _DEFAULTS.report,
    isolated: bool = False,
    at: str | None = None,
    name: str | None = None,
    max_late: float | None = None,
    wait: bool = False,
) -> Any:
    """Compress a language model end to end: fetch, calibrate, prune, distil, evaluate, benchmark, report.

    Runs what is out of date by params.yaml, and only that; an unchanged stage ends as *Cached*. Values given here are
    written to params.yaml first; what is not given stays as it stands there. The result is a stock checkpoint in
    data/distilled and its proof in data/report/index.html.

    Args:
        runtime: Where and how the numbers are computed.
        model: The dense model.
        texts: What is calibrated and trained on.
        calibrate: How texts become packed sequences.
        teacher: The cache of the dense model's hidden states.
        prune: How much is removed, and how.
        distill: How the pruned model learns from the dense one.
        evaluate: What is measured of all three models.
        benchmark: How speed is measured.
        gate: Limits that a result must keep to become the champion.
        export: The compressed model in the formats of other runtimes.
        report: What the report shows beside the numbers.
        isolated: Work in a workspace of its own, leave the checkout as it is, and end as a DVC experiment.
        at: The commit, tag or experiment that an isolated run starts from; by default the checkout as it stands.
        name: Of an isolated run: its experiment, MLflow run and flow run; by default made of model, width and time.
        max_late: A scheduled run that starts so many minutes after its time is skipped. By default it is skipped only
            when the next one of its schedule is due too.
        wait: If another run has this checkout, start after it instead of failing.
    """
    sections = {key: value for key, value in locals().items() if isinstance(value, Section)}
    given = {section: value.model_dump(exclude_unset=True) for section, value in sections.items()}
    given = {section: values for section, values in given.items() if values}
    home = environment.checkout_root()
    try:
        if (late := begin(home, max_late)) is not None:
            return late
        if isolated or at is not None:
            return run_isolated(home, given, at, name)
        return _run_in_checkout(home, given, wait)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _run_in_checkout(root: Path, given: dict[str, dict[str, Any]], wait: bool) -> State[Any]:
    logger = get_run_logger()
    os.chdir(root)
    end_with_parent()
    with run_lock(root, wait=wait, command=f"flow run {this_run.name}", on_wait=logger.info):
        for line in repair(root):
            logger.info(line)
        close_unfinished(root, "Its process was killed; a later run went on from what was whole.")
        note_run(root, this_run.id)
        for change in settle.settle(given, root):
            logger.info("params.yaml: %s", change)
        outcomes, seconds = run_stages(root, root)
        show_and_track(root, root, seconds)
        return ended(outcomes, gate_of(root))
