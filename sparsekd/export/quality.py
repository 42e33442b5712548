"""GGUF files in llama.cpp beside each other: how far each is from the dense model, its task scores, how fast it is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Evaluate, Export
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.evaluation.perplexity import DocumentSums, TokenScores, by_document, joined, score_logits
from sparsekd.export.formats import TIMED_DECODE, TIMED_PREFILL
from sparsekd.export.llama_cpp import LlamaCpp
from sparsekd.export.write import write_gguf
from sparsekd.models import load_tokenizer
from sparsekd.progress import Progress, silent

QUALITY = "quantised.json"
_TASK_POSITIONS = 2048
"""Of the cache while tasks are scored: longer than any row of the packaged ones with its longest answer."""

File = tuple[str, str]
"""A model's name and the type of its file."""


def quantised(
    models: Mapping[str, Path],
    types: Sequence[str],
    written: Mapping[File, Path],
    data: CalibrationSet,
    cache: TeacherCache,
    config: Export,
    tasks: Evaluate,
    benchmarks: Path | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """A row for each of `models` (checkpoints by name) in each of `types`, and in those it is `written` in already.

    A row has the model, the type, the file's bytes; by test corpus the perplexity and KL(dense || file) in nats of the
    first config.compare_tokens tokens, with intervals over documents; lm-eval's scores of config.compare_rows rows of
    each of `tasks` (rows of packaged ones in `benchmarks`); the median tokens a second of prefill and decode over
    config.compare_rounds. What is set to 0 is left out. Raises NotExportableError for a layout that llama.cpp does not
    take.
    """
    with _files(models, types, written) as files:
        rows: list[dict[str, Any]] = []
        for (model, kind), file in files.items():
            progress(len(rows), len(files), "files")
            row = {"model": model, "type": kind, "bytes": file.stat().st_size}
            row |= closeness(file, data.test, cache, config.compare_tokens)
            if config.compare_rows:
                few = tasks.model_copy(update={"rows": config.compare_rows})
                row["tasks"] = task_scores(file, load_tokenizer(models[model]), few, benchmarks)
            rows.append(row)
        speeds = tokens_per_second(files, config.compare_rounds)
    return [row | {"speed": found} if (found := speeds.get((row["model"], row["type"]))) else row for row in rows]


@contextmanager
def _files(
    models: Mapping[str, Path], types: Sequence[str], written: Mapping[File, Path]
) -> Iterator[dict[File, Path]]:
    """Those `written`, and the others in a folder that goes when it is left."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[File, Path] = {}
        for name, checkpoint in models.items():
            there = {kind: file for (model, kind), file in written.items() if model == name}
            made = {kind: Path(folder) / f"{name}-{kind}.gguf" for kind in types if kind not in there}
            if made:
                write_gguf(checkpoint, made)
            files |= {(name, kind): file for kind, file in {**there, **made}.items()}
        yield files


def closeness(file: Path, test: Mapping[str, Packed], cache: TeacherCache, tokens: int) -> dict[str, Any]:
    """Perplexity of the file and KL of the dense model to it on the first `tokens` of each corpus, by corpus."""
    found: dict[str, dict[str, Any]] = {"perplexity": {}, "kl": {}}
    longest = max(packed.input_ids.shape[1] for packed in test.values())
    with LlamaCpp(file, longest, torch.get_num_threads()) as runtime:
        for corpus, whole in test.items():
            sums = _sums(runtime, whole.head(tokens), cache, f"test-{corpus}")
            agreement = sums.agreement(0)
            assert agreement is not None
            found["perplexity"][corpus] = sums.perplexity(0).model_dump()
            found["kl"][corpus] = agreement["kl"].model_dump()
    return found


def _sums(runtime: LlamaCpp, packed: Packed, cache: TeacherCache, part: str) -> DocumentSums:
    scores = []
    for row, (ids, scored) in enumerate(zip(packed.input_ids, packed.scored, strict=True)):
        if not bool(scored.any()):
            continue
        runtime.reset()
        logits = runtime.read(ids.tolist(), every=True)[:-1][scored]
        dense = cache.logits(cache.hidden(part, [row])[0, :-1][scored])
        logits = logits[:, : dense.shape[1]]  # files may pad the vocabulary
        scores.append(score_logits(logits, ids[1:][scored], dense))
    return by_document(TokenScores(*(column.double() for column in joined(scores))), packed, compared=True)


def task_scores(
    file: Path, tokenizer: PreTrainedTokenizerBase, tasks: Evaluate, benchmarks: Path | None
) -> dict[str, dict[str, Any]]:
    """lm-eval's score of each task, with the log-likelihoods of llama.cpp."""
    from sparsekd.evaluation.lm_eval_adapter import run_tasks  # lm-eval takes seconds to import
    from sparsekd.export.llama_lm import LlamaLM

    with LlamaCpp(file, _TASK_POSITIONS, torch.get_num_threads()) as runtime, tempfile.TemporaryDirectory() as folder:
        found = run_tasks(
            runtime, tokenizer, tasks, Path(folder) / "lm_eval", benchmarks, checkpoint=file.name, adapter=LlamaLM
        )
    return {name: score.model_dump(exclude={"higher_is_better"}) for name, score in found.tasks.items()}


def tokens_per_second(files: Mapping[File, Path], rounds: int) -> dict[File, dict[str, float]]:
    """Median over `rounds` of reading TIMED_PREFILL tokens and then writing TIMED_DECODE tokens.

    Each round times every file, so what else the machine does meanwhile slows all of them. The first round warms
    up and does not count.
    """
    found: dict[File, list[tuple[float, float]]] = {name: [] for name in files}
    for turn in range(rounds + 1 if rounds else 0):
        for name, file in files.items():
            with LlamaCpp(file, TIMED_PREFILL + TIMED_DECODE, torch.get_num_threads(), exact=False) as runtime:
                timed = _timed(runtime)
            if turn:
                found[name].append(timed)
    return {
        name: {"prefill": median(prefill), "decode": median(decode)}
        for name, timings in found.items()
        if timings
        for prefill, decode in [zip(*timings, strict=True)]
    }


def _timed(runtime: LlamaCpp) -> tuple[float, float]:
    """Tokens a second of one prefill and one decode."""
    runtime.read([1, 2, 3])  # so that the weights are in memory
    runtime.reset()
    started = time.perf_counter()
    token = int(runtime.read([place % runtime.vocabulary for place in range(5, TIMED_PREFILL + 5)])[-1].argmax())
    filled = time.perf_counter()
    for _ in range(TIMED_DECODE):
        token = int(runtime.read([token])[-1].argmax())
    return TIMED_PREFILL / (filled - started), TIMED_DECODE / (time.perf_counter() - filled)
