"""Our method beside its peers on the same model, calibration tokens, compensation and distillation tokens.

    python -m pip install --no-deps --target build/peers optipfair==0.4.2
    python -m benchmarks.peers --data data           # after `make compress`; hours, can be stopped and goes on
    python -m benchmarks.peers --table               # from the committed results

A job is a selection, a compensation, a width, distillation tokens and a seed. Each runs in a process of its own and
adds one line to --out; what is there already is not run again. Scores are those of --data's validation and test parts,
KL against its dense model. `optipfair` prunes and distils by its own code; all other selections share our compensation
and our distillation.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import jobs as job_lines
from sparsekd.config import Calibrate, Distill, Evaluate, Prune, Runtime
from sparsekd.runtime import compute_dtype, resolve_device

OUT = Path("benchmarks/results/peers.jsonl")
WIDTHS = (1152, 896, 640)  # 75, 58 and 42 % of 1536
MIDDLE = WIDTHS[1]
TEXTS_ALONE = Calibrate(self_generated=0.0)
"""wiki and c4, which is what every method can be calibrated on."""
STATISTICS_TOKENS, DISTILL_TOKENS = 49_152, 61_440
OURS = ("mean_abs_svd", "svd", "energy", "mean_abs", "magnitude", "random")
PEERS = ("flap", "modegpt", "obs", "swaps")
COMPENSATIONS = ("none", "one_shot", "sequential")
USUAL = {
    "energy": "none", "mean_abs": "none", "magnitude": "none", "random": "none", "flap": "none",
    "modegpt": "one_shot", "obs": "one_shot", "swaps": "one_shot",
}  # fmt: skip
"""The compensation that each method comes with; FLAP's bias and MoDeGPT's Nyström step are the nearest of ours."""
BEST = ("mean_abs_svd", "mean_abs", "swaps")
"""Ours and the two peers that were nearest to dense at the middle width before distillation: what is also distilled at
the other widths, and over seeds."""
RATES = (1.5e-5, 4e-5, 1e-4, 3e-4)  # optipfair's own default is 4e-5
RATE, GENTLE = 3e-4, 3e-5
"""Of our own distillation, and of the dense model trained alike, for which the first is a job of its own."""
SEEDS = range(5)
BETA = 0.5
"""Of all sequential rows, as of the first that were measured; our default is lower since 2026-11-28."""


@dataclass(frozen=True)
class Job:
    """One line of results. `tokens` are those of the distillation, 0 for none; `rate` is optipfair's or dense's."""

    selection: str
    compensation: str
    width: int
    tokens: int = 0
    seed: int = 0
    rate: float = 0.0


def jobs() -> Iterator[Job]:
    """All of them, the ones that decide most first."""
    yield Job("dense", "none", 1536)
    yield Job("dense", "none", 1536, DISTILL_TOKENS)
    yield Job("dense", "none", 1536, DISTILL_TOKENS, rate=RATE)
    yield from (Job(BEST[0], "sequential", width) for width in WIDTHS)
    yield from (Job(selection, "sequential", MIDDLE, DISTILL_TOKENS) for selection in (*BEST, "svd", "obs"))
    yield from (Job("optipfair", "data", MIDDLE, DISTILL_TOKENS, rate=rate) for rate in RATES)
    for seed in SEEDS[1:]:
        yield from (Job(selection, "sequential", MIDDLE, DISTILL_TOKENS, seed) for selection in BEST)
    for width in (MIDDLE, *(w for w in WIDTHS if w != MIDDLE)):
        for compensation in reversed(COMPENSATIONS):
            yield from (Job(selection, compensation, width) for selection in (*OURS, *PEERS))
        yield from (Job("optipfair", kind, width) for kind in ("static", "data"))
    yield from (Job(selection, "sequential", MIDDLE, DISTILL_TOKENS) for selection in (*OURS, *PEERS))
    yield from (Job(selection, usual, MIDDLE, DISTILL_TOKENS) for selection, usual in USUAL.items())
    yield from (Job(BEST[0], compensation, MIDDLE, DISTILL_TOKENS) for compensation in COMPENSATIONS)
    for width in WIDTHS:
        if width != MIDDLE:
            yield from (Job(selection, "sequential", width, DISTILL_TOKENS) for selection in BEST)
            yield from (Job("optipfair", "data", width, DISTILL_TOKENS, rate=rate) for rate in RATES)


def run_job(job: Job, data: Path) -> dict[str, Any]:
    """Prune, distil and score one model, in this process."""
    from benchmarks.controls import scores
    from benchmarks.kept import calibrated, task_names

    names = task_names(data) if job.tokens or job.selection == "dense" else ()
    data = calibrated(TEXTS_ALONE, data)
    with tempfile.TemporaryDirectory(dir=data.resolve().parent) as folder:
        work = Path(folder)
        started = time.process_time()
        pruned = _pruned(job, data, work)
        pruned_at = time.process_time()
        model = _distilled(job, data, pruned, work) if job.tokens else pruned
        seconds = {"prune": pruned_at - started, "distill": time.process_time() - pruned_at}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        found = scores(model, data)
        tasks = _tasks(model, data, names) if names else {}
    return {"cpu_seconds": seconds, "peak_gib": peak, "scores": found, "tasks": tasks}


def _calibration(job: Job, data: Path) -> Any:
    """The calibration windows; another seed takes them in another order, so statistics come from other ones."""
    import torch

    from sparsekd.calibration.packing import CalibrationSet, Packed

    packed = CalibrationSet.load(data / "calibration").calibration
    if job.seed == 0:
        return packed
    order = torch.randperm(len(packed.input_ids), generator=torch.Generator().manual_seed(job.seed))
    return Packed(packed.input_ids[order], packed.document[order])


def _pruned(job: Job, data: Path, work: Path) -> Path:
    """The pruned checkpoint; the dense one for the job `dense`."""
    from benchmarks.peer_selections import PEER_SELECTIONS
    from sparsekd.models import load_model, save_checkpoint
    from sparsekd.pruning.walk import prune_model

    dense, out = data / "raw/model", work / "pruned"
    if job.selection == "dense":
        return dense
    ids = _calibration(job, data).head(STATISTICS_TOKENS).input_ids
    model = load_model(dense)
    if job.selection == "optipfair":
        from benchmarks import optipfair_peer

        model = optipfair_peer.prune(model, ids if job.compensation == "data" else None, job.width)
    else:
        known = job.selection in OURS
        settings = {"compensation": job.compensation, "beta": BETA, "seed": job.seed}
        config = Prune.model_validate(settings | {"selection": job.selection if known else "svd"})
        prune_model(model, ids, job.width, config, select=None if known else PEER_SELECTIONS[job.selection])
    save_checkpoint(model, dense, out)
    return out


def _distilled(job: Job, data: Path, student: Path, work: Path) -> Path:
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.run import Curriculum, distill_checkpoint
    from sparsekd.distillation.teacher import TeacherCache
    from sparsekd.models import load_model, save_checkpoint

    out = work / "distilled"
    if job.selection == "optipfair":
        from benchmarks import optipfair_peer

        ids = _calibration(job, data).head(job.tokens).input_ids
        model = optipfair_peer.distill(load_model(student), load_model(data / "raw/model"), ids, job.rate)
        save_checkpoint(model, student, out)
        return out
    out.mkdir()
    everything = CalibrationSet.load(data / "calibration")
    trained = {name: everything.validation[name] for name in ("wiki", "c4")}
    curriculum = Curriculum(everything.calibration, trained, TeacherCache.open(data / "teacher"))
    rate = job.rate or (GENTLE if job.selection == "dense" else RATE)
    config = Distill(tokens=job.tokens, seed=job.seed, learning_rate=rate)
    distill_checkpoint(student, out, curriculum, config, resolve_device(Runtime()), work / "checkpoints")
    return out


def _tasks(model: Path, data: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Score of each task, with the standard error."""
    from sparsekd.evaluation.lm_eval_adapter import run_tasks
    from sparsekd.models import load_model, load_tokenizer

    benchmarks, device = data / "raw/benchmarks", resolve_device(Runtime())
    config = Evaluate(tasks=names)
    loaded = load_model(model, compute_dtype(device), device)
    with tempfile.TemporaryDirectory() as out:
        found = run_tasks(loaded, load_tokenizer(model), config, Path(out) / "out", benchmarks).tasks
    return {name: {"value": score.value, "stderr": score.stderr} for name, score in found.items()}


def main() -> None:
    from benchmarks.peers_table import tables

    arguments = job_lines.parser(__doc__, OUT).parse_args()
    job_lines.run("benchmarks.peers", jobs(), run_job, tables, arguments, Job)


if __name__ == "__main__":
    from benchmarks import peers  # whose Job the tables know; this module's, run as a script, is another class

    peers.main()
