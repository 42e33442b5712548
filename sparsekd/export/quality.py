"""How far a GGUF file is from the dense model: in llama.cpp, on the test text, beside the dense model quantised."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsekd.calibration.packing import Packed
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.evaluation.perplexity import DocumentSums, TokenScores, by_document, joined, score_logits
from sparsekd.export.llama_cpp import LlamaCpp
from sparsekd.export.write import write_gguf
from sparsekd.progress import Progress, silent

QUALITY = "quantised.json"


def quantised(
    models: Mapping[str, Path],
    types: Sequence[str],
    written: Mapping[str, Mapping[str, Path]],
    test: Mapping[str, Packed],
    cache: TeacherCache,
    tokens: int,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """A row for each of `models` (checkpoints by name) in each of `types`, and in those it is `written` in already.

    `written` are files by model and type. A row has the model, the type, the file's bytes, and by corpus of `test` the
    perplexity and KL(dense || file) in nats of the first `tokens` tokens, with intervals over documents. Raises
    NotExportableError for a layout that llama.cpp does not take.
    """
    total = sum(len({*written.get(name, {}), *types}) for name in models)
    longest = max(packed.input_ids.shape[1] for packed in test.values())
    rows: list[dict[str, Any]] = []
    for name, checkpoint in models.items():
        there = written.get(name, {})
        with tempfile.TemporaryDirectory() as folder:
            made = {kind: Path(folder) / f"{kind}.gguf" for kind in types if kind not in there}
            if made:
                write_gguf(checkpoint, made)
            for kind, file in {**there, **made}.items():
                progress(len(rows), total, "files")
                with LlamaCpp(file, longest, torch.get_num_threads()) as runtime:
                    found = closeness(runtime, test, cache, tokens)
                rows.append({"model": name, "type": kind, "bytes": file.stat().st_size, **found})
    return rows


def closeness(runtime: LlamaCpp, test: Mapping[str, Packed], cache: TeacherCache, tokens: int) -> dict[str, Any]:
    """Perplexity of the runtime and KL of the dense model to it on the first `tokens` of each corpus, by corpus."""
    found: dict[str, dict[str, Any]] = {"perplexity": {}, "kl": {}}
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
