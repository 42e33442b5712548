"""Recipes of pruning and distillation against the default one, judged on validation text.

    python -m benchmarks.recipes --data data         # after `make compress`; hours, can be stopped and goes on
    python -m benchmarks.recipes --table             # from the committed results

Each changes one thing of SETTINGS, at 58 % of the width, where recipes differ most; those with another width belong
together. Students that differ in distillation alone start from one pruned checkpoint, and whatever is calibrated like
DATA uses that.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks import jobs as job_lines
from benchmarks.kept import KEPT, calibrated, kept
from flows.settings.params import with_settings
from sparsekd.config import RunConfig, Runtime
from sparsekd.pruning.budget import resolve_budget
from sparsekd.runtime import resolve_device

if TYPE_CHECKING:
    from sparsekd.calibration.packing import CalibrationSet

OUT = Path("benchmarks/results/recipes.jsonl")
SETTINGS = ("prune.width=896", "prune.statistics_tokens=49152", "prune.beta=0.5", "distill.tokens=61440")
"""prune.beta was 0.5 by default until it was compared with others here."""
CHANGES = (
    "",
    "calibrate.self_generated=0",
    "calibrate.self_generated=0.666",
    "distill.alpha=1",
    "distill.alpha=0.7",
    "distill.alpha=0.3",
    "distill.temperature=2",
    "distill.divergence=jsd",
    "distill.divergence=reverse_kl",
    "distill.batch_size=2",
    "distill.batch_size=2 distill.learning_rate=4.2e-4",
    "distill.batch_size=2 distill.learning_rate=6e-4",
    "distill.tokens=122880",
    "distill.tokens=122880 distill.epochs=2",
    "prune.beta=0",
    "prune.beta=0.25",
    "prune.beta=0.75",
    "prune.beta=1",
    "prune.compensation=one_shot",
    "distill.learning_rate=1.5e-4",
    "distill.learning_rate=6e-4",
    "fisher",
    "prune.selection=svd",
    "fisher prune.selection=svd",
    "prune.width=640 prune.beta=0.25",
    "prune.width=640 prune.compensation=one_shot",
    "prune.width=1152 prune.beta=0.25",
    "prune.width=1152 prune.compensation=one_shot",
)
METRIC_TOKENS = 8_192
SEEDS = 2
"""Each change with the first seed, then all again with the next: what is within a seed's reach is no difference."""


@dataclass(frozen=True)
class Job:
    """One line of results: `changes` are settings, blanks between them, and `fisher` (benchmarks/fisher.py)."""

    changes: str
    seed: int = 0


def jobs() -> Iterator[Job]:
    for seed in range(SEEDS):
        yield from (Job(changes, seed) for changes in CHANGES)


def configuration(job: Job) -> RunConfig:
    return with_settings(RunConfig(), [*SETTINGS, f"distill.seed={job.seed}", *_settings(job)])


def _settings(job: Job) -> list[str]:
    return [change for change in job.changes.split() if change != "fisher"]


def run_job(job: Job, data: Path) -> dict[str, Any]:
    """Prune where no job has yet, distil and score one model, in this process."""
    from benchmarks.controls import scores
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.run import Curriculum, distill_checkpoint
    from sparsekd.distillation.teacher import TeacherCache

    config, device = configuration(job), resolve_device(Runtime())
    data = calibrated(config.calibrate, data)
    everything = CalibrationSet.load(data / "calibration")
    trained = {name: everything.validation[name] for name in ("wiki", "c4")}
    curriculum = Curriculum(everything.calibration, trained, TeacherCache.open(data / "teacher"))
    started = time.process_time()
    student = _pruned(config, everything, data, "fisher" in job.changes.split())
    pruned_at = time.process_time()
    with tempfile.TemporaryDirectory(dir=KEPT) as folder:
        out = Path(folder) / "distilled"
        out.mkdir()
        distill_checkpoint(student, out, curriculum, config.distill, device, Path(folder) / "checkpoints")
        seconds = {"prune": pruned_at - started, "distill": time.process_time() - pruned_at}
        return {"cpu_seconds": seconds, "scores": scores(out, data, ("validation",))}


def _pruned(config: RunConfig, everything: CalibrationSet, data: Path, fisher: bool) -> Path:
    from benchmarks.fisher import in_metric, output_metrics
    from sparsekd.models import load_model, save_checkpoint
    from sparsekd.pruning.selection import SELECTIONS
    from sparsekd.pruning.walk import prune_model

    dense = (data / "raw/model").resolve()

    def make(out: Path) -> None:
        model, select = load_model(dense), SELECTIONS[config.prune.selection]
        if fisher:
            select = in_metric(select, output_metrics(model, everything.calibration.head(METRIC_TOKENS).input_ids))
        ids = everything.calibration.head(config.prune.statistics_tokens).input_ids
        prune_model(model, ids, resolve_budget(config.prune, model.config.to_dict()), config.prune, select=select)
        save_checkpoint(model, dense, out)

    return kept([config.prune.model_dump(), str(dense), config.calibrate.model_dump(), fisher], make)


def table(results: Mapping[Job, dict[str, Any]]) -> str:
    """A row a change: mean loss over the corpora trained on and over the others, mean KL; seeds beside each other."""
    lines = ["| change | loss, wiki and c4 | loss, others | KL | CPU-seconds |", "|---|---:|---:|---:|---:|"]
    for changes in CHANGES:
        found = [results[job] for seed in range(SEEDS) if (job := Job(changes, seed)) in results]
        if found:
            columns = zip(*(_figures(line) for line in found), strict=True)
            cells = [
                " / ".join(f"{value:{form}}" for value in column) for form, column in zip(_FORMS, columns, strict=True)
            ]
            lines.append(f"| {changes or 'default'} | {' | '.join(cells)} |")
    return "\n".join(lines)


_FORMS = (".4f", ".4f", ".4f", ".0f")


def _figures(line: dict[str, Any]) -> tuple[float, float, float, float]:
    found = line["scores"]["validation"]
    loss = {corpus: math.log(score["perplexity"]["value"]) for corpus, score in found.items()}
    inside = mean(loss[corpus] for corpus in ("wiki", "c4"))
    outside = mean(value for corpus, value in loss.items() if corpus not in ("wiki", "c4"))
    return inside, outside, mean(score["kl"]["value"] for score in found.values()), line["cpu_seconds"]["distill"]


def main() -> None:
    arguments = job_lines.parser(__doc__, OUT).parse_args()
    job_lines.run("benchmarks.recipes", jobs(), run_job, table, arguments, Job)


if __name__ == "__main__":
    main()
