"""Everything that is measured on one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import Packed
from sparsekd.config import Evaluate
from sparsekd.decoding import greedy, stop_tokens
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.evaluation.lm_eval_adapter import TaskRun, run_tasks
from sparsekd.evaluation.perplexity import DocumentSums, document_sums
from sparsekd.evaluation.prompts import answer_prompts, chat_prompts, is_degenerate
from sparsekd.evaluation.results import Agreement, Evaluation, Perplexity
from sparsekd.models import count_parameters, declared_dtype, load_model, load_tokenizer
from sparsekd.progress import Progress, silent

CHAT = "chat"


def evaluate_model(
    path: Path,
    config: Evaluate,
    out: Path,
    *,
    variant: str = "model",
    test: Mapping[str, Packed] | None = None,
    teacher: TeacherCache | None = None,
    benchmarks: Path | None = None,
    prompts: Sequence[str] = (),
    prompt_tokens: int = 64,
    device: str | torch.device = "cpu",
    home: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the checkpoint at `path`; write evaluation.json, documents.json, prompts.json and lm_eval/ into `out`.

    `test` maps a corpus to its packed test part (perplexity; on "chat" also the share of looping answers). With
    `teacher`, whose parts are named test-<corpus>, agreement with the dense model is measured too. `benchmarks` holds
    the rows of packaged tasks. `home` is where `out` will stand in the end, for the command that is printed.
    Raises ModelError, ConfigError (unknown task), SourceError (no rows), ArtifactError (teacher cache).
    """
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(path, getattr(torch, config.dtype), device)
    tokenizer = load_tokenizer(path)
    # tasks come first: of all that can go wrong, a task without rows is the likeliest
    run = _run_tasks(model, tokenizer, config, out, benchmarks, path, home or out, progress)
    sums = _score_corpora(model, test or {}, teacher, config, progress)
    documents: dict[str, dict[str, list[Any]]] = {corpus: found.to_json() for corpus, found in sums.items()}
    parameters = count_parameters(model)
    del model  # two copies of the weights would make this the heaviest stage
    # float32: in padded batches bfloat16 attention was seen to change greedy answers for the worse
    writer = load_model(path, torch.float32, device)
    if test and CHAT in test:
        documents[CHAT]["degenerate"] = _loops(writer, tokenizer, test[CHAT], progress)
    answers = answer_prompts(writer, tokenizer, prompts, prompt_tokens, progress) if prompts else []
    evaluation = Evaluation(
        variant=variant,
        parameters=parameters,
        bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        checkpoint_dtype=str(declared_dtype(path)).removeprefix("torch."),
        dtype=config.dtype,
        perplexity={corpus: _perplexity(found, config.seed) for corpus, found in sums.items()},
        agreement={
            corpus: Agreement(**intervals)
            for corpus, found in sums.items()
            if (intervals := found.agreement(config.seed)) is not None
        },
        repetition={
            corpus: _share(record["degenerate"]) for corpus, record in documents.items() if "degenerate" in record
        },
        tasks=run.tasks if run else {},
        groups=run.groups if run else {},
        command=run.command if run else None,
    )
    (out / "evaluation.json").write_text(evaluation.to_json())
    (out / "documents.json").write_text(json.dumps(documents, indent=1) + "\n")
    (out / "prompts.json").write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
    return evaluation


def _score_corpora(
    model: PreTrainedModel,
    test: Mapping[str, Packed],
    teacher: TeacherCache | None,
    config: Evaluate,
    progress: Progress,
) -> dict[str, DocumentSums]:
    total, done = sum(packed.tokens for packed in test.values()), 0
    sums = {}
    for corpus, packed in test.items():
        part = f"test-{corpus}"
        sums[corpus] = document_sums(model, packed, config.batch_size, teacher, part, progress, done, total)
        done += packed.tokens
    return sums


def _loops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: Packed, progress: Progress) -> list[int]:
    """1 for each chat prompt that this model answers in a loop, else 0, in the order of the sequences."""
    prompts, most = chat_prompts(chat)
    answers = greedy(model, prompts, most, stop_tokens(model, tokenizer), progress)
    return [int(is_degenerate(answer)) for answer in answers]


def _run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Evaluate,
    out: Path,
    benchmarks: Path | None,
    path: Path,
    home: Path,
    progress: Progress,
) -> TaskRun | None:
    if not config.tasks:
        return None
    return run_tasks(model, tokenizer, config, out / "lm_eval", benchmarks, str(path), home / "lm_eval", progress)


def _perplexity(sums: DocumentSums, seed: int) -> Perplexity:
    interval = sums.perplexity(seed)
    return Perplexity(**interval.model_dump(), tokens=int(sums.tokens.sum()), documents=len(sums.tokens))


def _share(flags: Sequence[int]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
