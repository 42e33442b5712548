"""Why not just quantise? Dense and compressed model in llama.cpp, at 16, 8 and 4 bits, on one machine.

    python -m benchmarks.quantise --data data        # after `make compress`; half an hour, can be stopped and goes on
    python -m benchmarks.quantise --table            # from the committed results

Bytes are the GGUF file's. KL to the dense checkpoint and perplexity are over the test text, from llama.cpp's logits;
tasks are lm-eval's, from llama.cpp's log-likelihoods; tokens a second are the median of rounds
in which every file is timed in turn. GGUF files are kept in build/quantise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

from benchmarks import jobs as job_lines
from sparsekd.artifacts import Artifact
from sparsekd.config import Evaluate

OUT = Path("benchmarks/results/quantise.jsonl")
FILES = Path("build/quantise")
CHECKPOINTS = {"dense": "raw/model", "ours": "distilled"}
TYPES = ("q8_0", "q4_0", "f16")
SPEED = "speed"
TRAINED_ON = ("wiki", "c4")
ROUNDS, PREFILL, DECODE = 5, 512, 64
CONTEXT = 2048
TOKENS, ROWS = 4096, 100
"""Test tokens of each corpus, and rows of each task."""


@dataclass(frozen=True)
class Job:
    """One line of results: a file's quality, or with `model` SPEED how fast all of them are."""

    model: str
    type: str = ""


def jobs() -> Iterator[Job]:
    for name in TYPES:
        yield from (Job(model, name) for model in CHECKPOINTS)
    yield Job(SPEED)


def gguf(job: Job, data: Path) -> Path:
    """The file of a model and type, written where it is not there yet."""
    from sparsekd.export.write import write_gguf

    checkpoint = Artifact.read(data / CHECKPOINTS[job.model])
    file = FILES / f"{checkpoint.manifest.sha256()[:12]}-{job.type}.gguf"
    if not file.is_file():
        FILES.mkdir(parents=True, exist_ok=True)
        write_gguf(checkpoint.path, {job.type: file.with_suffix(".partial")})
        os.replace(file.with_suffix(".partial"), file)
    return file


def run_job(job: Job, data: Path) -> dict[str, Any]:
    """Measure in this process."""
    import torch

    from sparsekd.export.llama_cpp import LlamaCpp

    started = time.process_time()
    if job.model == SPEED:
        return {"tokens_per_second": speeds(data), "cpu_seconds": {SPEED: time.process_time() - started}}
    file = gguf(job, data)
    written = time.process_time()
    with LlamaCpp(file, CONTEXT, torch.get_num_threads()) as runtime:
        found = test_text(runtime, data)
        scored = time.process_time()
        tasks = task_scores(runtime, data)
    seconds = {"write": written - started, "text": scored - written, "tasks": time.process_time() - scored}
    return {"bytes": file.stat().st_size, "test": found, "tasks": tasks, "cpu_seconds": seconds}


def test_text(runtime: Any, data: Path) -> dict[str, Any]:
    """Perplexity, and KL of the dense checkpoint to the file, each with its interval over documents, by corpus."""
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.teacher import TeacherCache
    from sparsekd.export.quality import closeness

    test = CalibrationSet.load(data / "calibration").test
    found = closeness(runtime, test, TeacherCache.open(data / "teacher"), TOKENS)
    return {corpus: {figure: found[figure][corpus] for figure in found} for corpus in test}


def task_scores(runtime: Any, data: Path) -> dict[str, Any]:
    """lm-eval's scores on the tasks and rows of the run, with the log-likelihoods of llama.cpp."""
    import tempfile

    from benchmarks.llama_lm import LlamaLM
    from sparsekd.evaluation import lm_eval_adapter
    from sparsekd.models import load_tokenizer

    settings = Artifact.read(data / "evaluation" / "dense", verify=False).manifest.config["evaluate"] | {"rows": ROWS}
    tokenizer = load_tokenizer(data / CHECKPOINTS["dense"])
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(lm_eval_adapter, "SharedContextLM", LlamaLM):
        done = lm_eval_adapter.run_tasks(
            runtime, tokenizer, Evaluate(**settings), Path(folder) / "lm_eval", data / "raw/benchmarks", "llama.cpp"
        )
    return {name: score.model_dump() for name, score in done.tasks.items()}


def speeds(data: Path) -> dict[str, dict[str, list[float]]]:
    """Tokens a second of reading PREFILL and then writing DECODE tokens, by file: a figure a round."""
    import torch

    from sparsekd.export.llama_cpp import LlamaCpp

    files = {f"{job.model} {job.type}": gguf(job, data) for job in jobs() if job.model != SPEED}
    found: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in files}
    for turn in range(ROUNDS + 1):  # the first warms up
        for name, file in files.items():
            with LlamaCpp(file, PREFILL + DECODE, torch.get_num_threads(), exact=False) as runtime:
                runtime.read([1, 2, 3])
                runtime.reset()
                started = time.perf_counter()
                token = int(runtime.read([5 + place % 1000 for place in range(PREFILL)])[-1].argmax())
                filled = time.perf_counter()
                for _ in range(DECODE):
                    token = int(runtime.read([token])[-1].argmax())
                ended = time.perf_counter()
            if turn:
                found[name]["prefill"].append(PREFILL / (filled - started))
                found[name]["decode"].append(DECODE / (ended - filled))
    return found


def on_frontier(rows: Mapping[Job, tuple[float, float]]) -> set[Job]:
    """Those to which no other is at most as large and as far from dense, and better in one."""

    def beaten(own: tuple[float, float]) -> bool:
        return any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in rows.values())

    return {job for job, figures in rows.items() if not beaten(figures)}


def table(results: Mapping[Job, dict[str, Any]]) -> str:
    """A row a file: mean KL over the corpora trained on and over the others, perplexity of one, the mean task score."""
    files = {job: line for job, line in results.items() if job.model != SPEED}
    places = {job: (line["bytes"], mean(_values(line["test"], "kl"))) for job, line in files.items()}
    best, timed = on_frontier(places), results.get(Job(SPEED), {}).get("tokens_per_second", {})
    lines = [
        "| file | MB | KL, wiki and c4 | KL, others | perplexity, wiki | tasks, mean | prefill tokens/s | "
        "decode tokens/s | on the frontier |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for job, line in files.items():
        speed = timed.get(f"{job.model} {job.type}", {})
        cells = [
            f"{job.model} {job.type.upper()}",
            f"{line['bytes'] / 1e6:.0f}",
            *(f"{mean(_values(line['test'], 'kl', trained)):.3f}" for trained in (True, False)),
            f"{line['test'][TRAINED_ON[0]]['perplexity']['value']:.2f}",
            f"{100 * mean(score['value'] for score in line['tasks'].values()):.1f}" if line["tasks"] else "–",
            *(f"{median(speed[kind]):.0f}" if speed else "–" for kind in ("prefill", "decode")),
            "yes" if job in best else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(test: Mapping[str, Any], figure: str, trained: bool | None = None) -> list[float]:
    """Of all corpora, or of those that were trained on or were not."""
    named = [name for name in test if trained is None or (name in TRAINED_ON) is trained]
    return [test[name][figure]["value"] for name in named]


def main() -> None:
    assert __doc__
    arguments = job_lines.parser(__doc__, OUT).parse_args()
    job_lines.run("benchmarks.quantise", jobs(), run_job, table, arguments, Job)


if __name__ == "__main__":
    main()
