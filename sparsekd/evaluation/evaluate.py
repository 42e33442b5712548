"""Everything that is measured on one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import Packed
from sparsekd.config import Evaluate
from sparsekd.decoding import greedy, stop_tokens
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.evaluation.lm_eval_adapter import run_tasks
from sparsekd.evaluation.passages import worst_passages
from sparsekd.evaluation.perplexity import DocumentSums, TokenScores, by_document, token_scores
from sparsekd.evaluation.prompts import answer_prompts, chat_prompts, is_degenerate
from sparsekd.evaluation.results import Agreement, Evaluation, Perplexity
from sparsekd.evaluation.tokens import divergence, reliability
from sparsekd.models import count_parameters, declared_dtype, load_model, load_tokenizer
from sparsekd.progress import Progress, silent
from sparsekd.runtime import compute_dtype

CHAT = "chat"


def evaluate_model(
    path: Path,
    config: Evaluate,
    out: Path,
    *,
    variant: str = "model",
    test: Mapping[str, Packed] | None = None,
    validation: Mapping[str, Packed] | None = None,
    teacher: TeacherCache | None = None,
    benchmarks: Path | None = None,
    prompts: Sequence[str] = (),
    prompt_tokens: int = 64,
    device: str | torch.device = "cpu",
    home: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the checkpoint at `path`; write what was found into `out`.

    That is evaluation.json, documents.json, tokens.json, prompts.json and lm_eval/.
    `test` maps a corpus to its packed test part (perplexity; on "chat" also the share of looping answers). With
    `teacher`, whose parts are named test-<corpus>, agreement with the dense model is measured too. What is scored on
    `validation`, and on config.validation_rows other rows of the tasks, goes to `out`/validation: a gate judges by it.
    `benchmarks` holds the rows of packaged tasks. `home` is where `out` will stand in the end, for the printed command.
    Raises ModelError, ConfigError (unknown task), SourceError (no rows), ArtifactError (teacher cache).
    """
    out.mkdir(parents=True, exist_ok=True)
    dtype, tokenizer = compute_dtype(torch.device(device), config.dtype), load_tokenizer(path)
    config = config.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    tasks = partial(
        run_tasks, tokenizer=tokenizer, config=config, benchmarks=benchmarks, checkpoint=str(path), progress=progress
    )
    texts = partial(_score_corpora, teacher=teacher, batch_size=config.batch_size, progress=progress)
    model = load_model(path, dtype, device)
    # tasks come first: of all that can go wrong, a task without rows is the likeliest
    run = tasks(model, out=out / "lm_eval", home=(home or out) / "lm_eval") if config.tasks else None
    test = test or {}
    scores = texts(model, test, "test")
    sums = _by_document(scores, test, teacher)
    if validation:
        unseen = out / "validation"
        unseen.mkdir()
        rows = config.tasks and config.validation_rows
        found = tasks(model, out=unseen / "lm_eval", validation=True).tasks if rows else {}
        _write_json(unseen / "tasks.json", {name: score.model_dump() for name, score in found.items()})
        unseen_sums = _by_document(texts(model, validation, "validation"), validation, teacher)
        _write_json(unseen / "documents.json", _by_corpus(unseen_sums))
    _write_json(out / "tokens.json", _tokens(model, tokenizer, test, scores, teacher))
    parameters = count_parameters(model)
    del model  # two copies of the weights would make this the heaviest stage
    # float32: in padded batches bfloat16 attention was seen to change greedy answers for the worse
    writer = load_model(path, torch.float32, device)
    documents = _by_corpus(sums)
    if CHAT in test:
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
    _write_json(out / "documents.json", documents)
    _write_json(out / "prompts.json", answers)
    return evaluation


def _by_corpus(sums: Mapping[str, DocumentSums]) -> dict[str, dict[str, list[Any]]]:
    return {corpus: found.to_json() for corpus, found in sums.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _by_document(
    scores: Mapping[str, TokenScores], packed: Mapping[str, Packed], teacher: TeacherCache | None
) -> dict[str, DocumentSums]:
    return {corpus: by_document(found, packed[corpus], teacher is not None) for corpus, found in scores.items()}


def _tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Mapping[str, Packed],
    scores: Mapping[str, TokenScores],
    teacher: TeacherCache | None,
) -> dict[str, Any]:
    """What tokens.json holds: how test tokens spread, by corpus, and where the model is farthest from the teacher."""
    record: dict[str, Any] = {"reliability": {c: reliability(s).model_dump() for c, s in scores.items()}}
    if teacher is None:
        return record
    worst = worst_passages(model, tokenizer, test, scores, teacher)
    spread = {corpus: divergence(found).model_dump() for corpus, found in scores.items()}
    return record | {"divergence": spread, "passages": [passage.model_dump() for passage in worst]}


def _score_corpora(
    model: PreTrainedModel,
    packed: Mapping[str, Packed],
    part: str,
    teacher: TeacherCache | None,
    batch_size: int,
    progress: Progress,
) -> dict[str, TokenScores]:
    """The scored tokens of each corpus; `part` is "test" or "validation"."""
    total, done = sum(sequences.tokens for sequences in packed.values()), 0
    scores = {}
    for corpus, sequences in packed.items():
        name = f"{part}-{corpus}"
        scores[corpus] = token_scores(model, sequences, batch_size, teacher, name, progress, done, total)
        done += sequences.tokens
    return scores


def _loops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: Packed, progress: Progress) -> list[int]:
    """1 for each chat prompt that this model answers in a loop, else 0, in the order of the sequences."""
    prompts, most = chat_prompts(chat)
    answers = greedy(model, prompts, most, stop_tokens(model, tokenizer), progress)
    return [int(is_degenerate(answer)) for answer in answers]


def _perplexity(sums: DocumentSums, seed: int) -> Perplexity:
    interval = sums.perplexity(seed)
    return Perplexity(**interval.model_dump(), tokens=int(sums.tokens.sum()), documents=len(sums.tokens))


def _share(flags: Sequence[int]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
