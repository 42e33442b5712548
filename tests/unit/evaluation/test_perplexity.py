"""Perplexity and agreement against slow NumPy versions of their definitions, document by document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsekd.calibration.packing import CalibrationSet, Packed, pack, pad
from sparsekd.config import Teacher
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.distillation.teacher.cache import CacheIndex
from sparsekd.errors import ArtifactError
from sparsekd.evaluation import perplexity
from sparsekd.evaluation.perplexity import document_sums, score_tokens, token_scores
from sparsekd.models import final_hidden, lm_head, load_model
from sparsekd.runtime import compute_dtype


def random_documents(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(4, 380, length).tolist() for length in lengths]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def reference(logits: np.ndarray, dense: np.ndarray, packed: Packed) -> dict[int, dict[str, float]]:
    """Sums by document, token by token, from logits [sequences, length, vocab] of the model and of the dense model."""
    found: dict[int, dict[str, float]] = {}
    for row in range(len(packed.input_ids)):
        for place in range(1, packed.input_ids.shape[1]):
            document = int(packed.document[row, place])
            if document < 0:
                continue
            q, p = log_softmax(logits[row, place - 1]), log_softmax(dense[row, place - 1])
            sums = found.setdefault(document, {"tokens": 0, "nll": 0.0, "kl": 0.0, "top1": 0})
            sums["tokens"] += 1
            sums["nll"] -= q[int(packed.input_ids[row, place])]
            sums["kl"] += float((np.exp(p) * (p - q)).sum())
            sums["top1"] += int(logits[row, place - 1].argmax() == dense[row, place - 1].argmax())
            sums["confidence"] = sums.get("confidence", 0.0) + float(np.exp(q.max()))
            sums["right"] = sums.get("right", 0) + int(q.argmax() == int(packed.input_ids[row, place]))
    return found


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    packed = pack(random_documents([30, 75, 41, 90]), length=32, tokens=192)
    chat = pad([(ids, 6) for ids in random_documents([20, 31, 12], seed=3)], padding=0)
    return CalibrationSet(packed, {}, {"wiki": packed, "chat": chat})


@pytest.fixture(scope="module")
def teacher(
    make_model: Callable[..., Path], data: CalibrationSet, tmp_path_factory: pytest.TempPathFactory
) -> TeacherCache:
    out = tmp_path_factory.mktemp("teacher")
    write_teacher_cache(load_model(make_model("llama", seed=5)), data, out, Teacher(batch_size=2))
    return TeacherCache.open(out)


@pytest.mark.parametrize("corpus", ["wiki", "chat"])
def test_sums_are_those_of_the_definition(
    tiny_llama_dir: Path, data: CalibrationSet, teacher: TeacherCache, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "CHUNK", 20)  # several chunks and blocks, with a rest
    monkeypatch.setattr(perplexity, "BLOCK", 8)
    model, packed = load_model(tiny_llama_dir), data.test[corpus]
    found = document_sums(model, packed, 2, teacher, f"test-{corpus}")
    with torch.inference_mode():
        logits = model(packed.input_ids).logits.numpy()
        dense = teacher.logits(teacher.hidden(f"test-{corpus}")).numpy()
    expected = reference(logits, dense, packed)
    assert len(found.tokens) == len(expected)
    for position, document in enumerate(sorted(expected)):
        assert found.tokens[position] == expected[document]["tokens"]
        assert found.nll[position] == pytest.approx(expected[document]["nll"], rel=1e-4)
        assert found.kl is not None
        assert found.kl[position] == pytest.approx(expected[document]["kl"], rel=1e-3)
        assert found.top1 is not None
        assert found.top1[position] == expected[document]["top1"]
    scores = token_scores(model, packed, 2, teacher, f"test-{corpus}")
    for key, found_sum in (("confidence", scores.confidence.sum()), ("right", scores.right.sum())):
        assert float(found_sum) == pytest.approx(sum(sums[key] for sums in expected.values()), rel=1e-4)
    tokens, nll = (sum(sums[key] for sums in expected.values()) for key in ("tokens", "nll"))
    assert found.perplexity(seed=0).value == pytest.approx(np.exp(nll / tokens), rel=1e-4)


def test_prompt_and_padding_are_never_scored(tiny_llama_dir: Path, data: CalibrationSet) -> None:
    found = document_sums(load_model(tiny_llama_dir), data.test["chat"], 2)
    assert found.tokens.tolist() == [14, 25, 6]
    assert found.kl is None
    assert found.agreement(seed=0) is None
    assert set(found.to_json()) == {"tokens", "nll"}


def test_the_batch_size_changes_nothing(tiny_llama_dir: Path, data: CalibrationSet, teacher: TeacherCache) -> None:
    model = load_model(tiny_llama_dir)
    one, all_at_once = (document_sums(model, data.test["wiki"], size, teacher, "test-wiki") for size in (1, 6))
    assert one.nll == pytest.approx(all_at_once.nll, rel=1e-5)
    assert one.kl == pytest.approx(all_at_once.kl, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_model_agrees_with_itself_within_rounding(
    tiny_llama_dir: Path, data: CalibrationSet, tmp_path: Path, dtype: torch.dtype
) -> None:
    write_teacher_cache(load_model(tiny_llama_dir), data, tmp_path, Teacher(batch_size=2))
    cache = TeacherCache.open(tmp_path)
    found = document_sums(load_model(tiny_llama_dir, dtype), data.test["wiki"], 2, cache, "test-wiki")
    agreement = found.agreement(seed=0)
    assert agreement is not None
    assert 0 <= agreement["kl"].value < 0.01
    assert agreement["top1"].value > 0.9


def test_identical_hidden_states_agree_exactly(tiny_llama_dir: Path, data: CalibrationSet) -> None:
    model = load_model(tiny_llama_dir, compute_dtype(torch.device("cpu")))
    head = lm_head(model)
    with torch.inference_mode():
        hidden = final_hidden(model, data.test["wiki"].input_ids[:1])[0, :-1]
        same = TeacherCache(Path(), head, CacheIndex(kind="hidden", head_sha256="", parts={}))
        scores = score_tokens(hidden, head, data.test["wiki"].input_ids[0, 1:], hidden, same)
    assert scores.kl.abs().max() == 0
    assert scores.top1.min() == 1


def test_one_long_document_is_resampled_by_sequence(tiny_llama_dir: Path) -> None:
    packed = pack(random_documents([128]), length=32, tokens=128)
    found = document_sums(load_model(tiny_llama_dir), packed, 2)
    assert found.tokens.tolist() == [31, 31, 31, 31]
    interval = found.perplexity(seed=0)
    assert interval.low < interval.value < interval.high


def test_a_cache_of_other_texts_is_named(tiny_llama_dir: Path, data: CalibrationSet, teacher: TeacherCache) -> None:
    with pytest.raises(ArtifactError, match=r"has no part test-code; .*Run stage teacher"):
        document_sums(load_model(tiny_llama_dir), data.test["wiki"], 2, teacher, "test-code")


def test_a_corpus_without_scored_tokens_is_named(tiny_llama_dir: Path) -> None:
    prompts_only = pad([([5, 6, 7], 3)], padding=0)
    with pytest.raises(ArtifactError, match="test-chat has no token to score"):
        document_sums(load_model(tiny_llama_dir), prompts_only, 2, part="test-chat")


def test_progress_goes_on_across_corpora(tiny_llama_dir: Path, data: CalibrationSet) -> None:
    seen: list[tuple[float, float, str]] = []
    token_scores(
        load_model(tiny_llama_dir),
        data.test["wiki"],
        4,
        progress=lambda done, total, unit, **_: seen.append((done, total, unit)),
        before=100,
        total=400,
    )
    assert seen == [(228, 400, "tokens"), (292, 400, "tokens")]
